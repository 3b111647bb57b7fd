"""A folder of each family as one finds it on the Hub: tiny weights, real processor classes."""

import json

import tiny
import torch
import torch.nn.functional as F
import transformers as hf
import zoo
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers.video_utils import VideoMetadata

QWEN = {
    "<image>": "<|image_pad|>",
    "w55": "<|video_pad|>",
    "w53": "<|vision_start|>",
    "w54": "<|vision_end|>",
}
TILES = {f"w{48 + 2 * r + c}": f"<row_{r + 1}_col_{c + 1}>" for r in (0, 1) for c in (0, 1)}
IDEFICS = {
    **TILES,
    "w52": "<global-img>",
    "w53": "<fake_token_around_image>",
    "w54": "<end_of_utterance>",
}
SPECIAL = {
    "llava_onevision": {"w55": "<video>"},
    "qwen2_vl": QWEN,
    "qwen2_5_vl": QWEN,
    "qwen3_vl": QWEN,
    "internvl": {"<image>": "<IMG_CONTEXT>", "w53": "<img>", "w54": "</img>", "w55": "<video>"},
    "idefics3": IDEFICS,
    "smolvlm": {**IDEFICS, "w55": "<video>"},
    "gemma3": {
        "<image>": "<image_soft_token>",
        "w53": "<start_of_image>",
        "w54": "<end_of_image>",
    },
}
"""What the family's special tokens stand in place of, so that ids are those of zoo's configs."""

LLAVA = {"image_token": "<image>"}

NAMED = {
    "llava": LLAVA,
    "llava_next": LLAVA,
    "internvl": {
        "context_image_token": "<IMG_CONTEXT>",
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "video_token": "<video>",
    },
    "gemma3": {
        "image_token": "<image_soft_token>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
    },
}
"""Special tokens that the processor asks its tokenizer for by name."""

PICTURE = {
    "qwen2_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "qwen2_5_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "qwen3_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "internvl": "<IMG_CONTEXT>",
    "gemma3": "<start_of_image>",
}
"""What a picture is in the chat template, "<image>" elsewhere."""

SETTINGS = {
    "llava": dict(
        patch_size=tiny.PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    ),
    "llava_onevision": dict(
        num_image_tokens=64,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_2",
    ),
    "internvl": dict(image_seq_length=16),
    "idefics3": dict(image_seq_len=16),
    "smolvlm": dict(image_seq_len=16),
    "gemma3": dict(image_seq_length=16),
}
SETTINGS["llava_next"] = SETTINGS["llava"]


class Videos:
    """Stands for the video part of a processor, which needs torchvision: frames of one size, as the
    model wants them."""

    temporal_patch_size = merge_size = 2

    def __init__(self, family):
        self.family, self.pictures = family, zoo.image_processor(family)

    def __call__(self, videos, do_sample_frames, video_metadata, **kwargs):
        assert do_sample_frames is False
        told = [VideoMetadata(**metadata) for metadata in video_metadata]
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
    special = SPECIAL.get(family, {})
    words = {special.get(word, word): i for i, word in enumerate(tiny.WORDS)}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = hf.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=NAMED.get(family, {}),
        padding_side="left",
    )
    others = sorted({"<image>", *special.values()} & words.keys())
    made.add_special_tokens({"extra_special_tokens": others}, replace_extra_special_tokens=False)
    return made


def save(family, folder):
    """Write the folder: weights, tokenizer, chat template, and the processor's settings."""
    zoo.model(family).save_pretrained(folder)
    tokenizer(family).save_pretrained(folder)
    images = zoo.image_processor(family).to_dict()
    images["image_processor_type"] = images["image_processor_type"].removesuffix("Pil")
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    settings = SETTINGS.get(family, {})
    kind = hf.PROCESSOR_MAPPING[type(hf.AutoConfig.from_pretrained(folder))].__name__
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": kind, **settings}))
    template = tiny.CHAT_TEMPLATE.replace("<image>", PICTURE.get(family, "<image>"))
    if family.startswith("qwen"):
        template = template.replace("<video>", "<|vision_start|><|video_pad|><|vision_end|>")
    (folder / "chat_template.jinja").write_text(template)
    return folder
