"""A folder of each family as one finds it on the Hub: tiny weights, real processor classes."""

import importlib.util
import json

import pytest
import tiny
import torch
import torch.nn.functional as F
import transformers as hf
import zoo
from packaging.version import Version
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers.utils import is_torchvision_available
from transformers.video_utils import VideoMetadata

from fopru.versions import INSTALLED

GEMMA4 = Version("5.21")
"""The first version of transformers whose processors of Gemma 4 do without torchvision."""


def lacking(family):
    """What the family's processor wants and is not installed, "" where it wants nothing."""
    kind = zoo.example(family).processor or type(zoo.config(family)).__name__
    there = {
        "SmolVLMConfig": ("num2words", importlib.util.find_spec("num2words") is not None),
        "PixtralProcessor": ("torchvision", is_torchvision_available()),
        "Gemma4Config": ("torchvision", is_torchvision_available() or INSTALLED >= GEMMA4),
        "Gemma4UnifiedConfig": ("torchvision", is_torchvision_available() or INSTALLED >= GEMMA4),
    }
    wanted, installed = there.get(kind, ("", True))
    return "" if installed else wanted


def skip_without(family):
    """Skip the test where the processor wants what is not installed."""
    if wanted := lacking(family):
        pytest.skip(f"the processor of {family} wants {wanted}, which is not installed")


class Videos:
    """Stands for the video part of a processor, which needs torchvision: frames of one size, as the
    model wants them."""

    temporal_patch_size = merge_size = 2

    def __init__(self, family):
        self.family, self.pictures = family, zoo.image_processor(family)

    def __call__(self, videos, do_sample_frames, video_metadata, **kwargs):
        assert do_sample_frames is False
        told = [VideoMetadata(**metadata) for metadata in video_metadata]
        if (clip := zoo.example(self.family).clip) is not None:
            found = [self.pictures(images=list(video), return_tensors="pt") for video in videos]
            tokens = [int(made["num_soft_tokens_per_image"][0]) for made in found]
            made = [clip(one) for one in found]
            whole = {name: torch.cat([one[name] for one in made]) for name in made[0]}
            return {**whole, "num_soft_tokens_per_video": tokens, "video_metadata": told}
        if self.family == "llava_onevision":
            made = [self._pixels(video) for video in videos]  # (T, 3, H, W)
            return {"pixel_values_videos": torch.stack(made), "video_metadata": told}
        made, sizes = zip(*map(self._patches, videos), strict=True)
        found = {"pixel_values_videos": torch.cat(made), "video_grid_thw": torch.tensor(sizes)}
        return {**found, "video_metadata": told}

    def _pixels(self, video):
        pixels = torch.tensor(video).permute(0, 3, 1, 2) / 127.5 - 1
        return F.interpolate(pixels, (tiny.SIDE, tiny.SIDE))

    def _patches(self, video):
        """Of each pair of frames (cells, 3 * 2 * patch * patch)."""
        frames = [self.pictures(images=[frame], return_tensors="pt") for frame in video]
        _, height, width = frames[0]["image_grid_thw"][0].tolist()
        cells = [f["pixel_values"].unflatten(1, (3, 2, -1)) for f in frames]
        pairs = [
            torch.stack([one[:, :, 0], other[:, :, 1]], 2).flatten(1)
            for one, other in zip(cells[::2], cells[1::2], strict=True)
        ]
        return torch.cat(pairs), [len(pairs), height, width]


def tokenizer(family):
    case = zoo.example(family)
    special = case.special
    words = {special.get(word, word): i for i, word in enumerate(tiny.WORDS)}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = hf.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=dict(case.named),
        padding_side="left",
    )
    others = sorted({"<image>", *special.values()} & words.keys())
    made.add_special_tokens({"extra_special_tokens": others}, replace_extra_special_tokens=False)
    made.add_tokens([word for word in words if word.startswith("w") or word.endswith(":")])  # BPE
    return made


def save(family, folder):
    """Write the folder: weights, tokenizer, chat template, and the processor's settings."""
    zoo.model(family).save_pretrained(folder)
    tokenizer(family).save_pretrained(folder)
    images = zoo.image_processor(family).to_dict()
    images["image_processor_type"] = images["image_processor_type"].removesuffix("Pil")
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    case = zoo.example(family)
    kind = case.processor or hf.PROCESSOR_MAPPING[type(case.config)].__name__
    (folder / "processor_config.json").write_text(
        json.dumps({"processor_class": kind, **case.settings})
    )
    template = tiny.CHAT_TEMPLATE.replace("<image>", case.picture)
    template = template.replace("<video>", case.video)
    (folder / "chat_template.jinja").write_text(template)
    return folder
