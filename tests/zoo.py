"""Tiny random models of every family, and inputs for them: made here, nothing is downloaded.

Processors of some families want torchvision, so prompts are put together here: each image processor
makes the pixels, the model itself says how many tokens a picture becomes.
"""

import re
from copy import deepcopy
from functools import cache

import numpy as np
import tiny
import torch
import transformers as hf
from tiny import IMAGE_TOKEN_ID, SIDE, WORDS

import fopru
from fopru.families import Family

VIDEO_TOKEN_ID = WORDS.index("w55")
FAMILIES = list(Family.registry)
VIDEO = [name for name, family in Family.registry.items() if family.video is not None]
NEW = [name for name in FAMILIES if name not in ("llava", "llava_next")]


@cache
def example(family):
    return Family.registry[family].example(family)


def config(family):
    return deepcopy(example(family).config)


def _linear(family):
    kinds = getattr(config(family).get_text_config(), "layer_types", None)
    return "linear_attention" in (kinds or ())


LINEAR = [family for family in FAMILIES if _linear(family)]
"""Those whose language models have layers with linear attention, where no key can be masked."""


def near(family):
    """How far logits of the same tokens may be apart. transformers' rule of linear attention works
    in float32 whatever the model's type, in pieces that begin elsewhere when tokens are gone (with
    that rule in float64 the difference is 4e-16)."""
    return 1e-3 if family in LINEAR else 1e-4


def model(family, attention="sdpa", dtype=torch.float32):
    """A model whose attention is far from uniform, so that rankings are not decided by noise."""
    torch.manual_seed(0)
    net = hf.AutoModelForImageTextToText.from_config(config(family))
    tiny.shake(net)
    net.set_attn_implementation(attention)
    net.generation_config.eos_token_id = None
    net.generation_config.pad_token_id = 0
    net.generation_config.suppress_tokens = [IMAGE_TOKEN_ID, VIDEO_TOKEN_ID]
    return net.to(dtype).eval()


def image_processor(family):
    return example(family).images


def inputs(family, images, texts, padding_side="left"):
    """A batch; `<image>` in the texts becomes each picture's placeholders."""
    case = example(family)
    texts = [texts] if isinstance(texts, str) else texts
    rest = iter(images)
    rows = [[next(rest) for _ in range(text.count("<image>"))] for text in texts]
    given = rows if case.nested else images
    data = dict(case.images(images=given, return_tensors="pt", **case.options))
    if case.runs is not None:
        runs = case.runs(data, rows)
    else:
        with torch.no_grad():
            output = model(family).get_image_features(**data, return_dict=True)
        runs = ["<image> " * len(tokens) for tokens in output.pooler_output]
    left = iter(runs)
    texts = [re.sub("<image>", lambda _: next(left), text) for text in texts]
    ids = tiny.tokenizer(padding_side)(texts, padding=True, return_tensors="pt")
    data |= {"input_ids": ids.input_ids, "attention_mask": ids.attention_mask}
    if case.kinds is not None:
        data[case.kinds] = (ids.input_ids == IMAGE_TOKEN_ID).long()
    return data


def video(family, frames=4):
    """One video and a prompt with it."""
    net = model(family)
    pictures = [tiny.image(64, 48, seed=seed) for seed in range(frames)]
    rng = np.random.default_rng(0)
    found = image_processor(family)(images=pictures, return_tensors="pt")
    if "image_grid_thw" not in found:
        data = {"pixel_values_videos": torch.tensor(rng.normal(size=(1, frames, 3, SIDE, SIDE)))}
    else:
        _, height, width = found["image_grid_thw"][0].tolist()
        grid = torch.tensor([[frames // 2, height, width]])
        cells = int(grid.prod())
        patches = rng.normal(size=(cells, found["pixel_values"].shape[1]))
        data = {"pixel_values_videos": torch.tensor(patches), "video_grid_thw": grid}
        if "second_per_grid_ts" in Family.registry[family].also and family != "qwen2_vl":
            data["second_per_grid_ts"] = torch.tensor([2.0])
    data["pixel_values_videos"] = data["pixel_values_videos"].float()
    shown = {k: v for k, v in data.items() if k != "second_per_grid_ts"}
    with torch.no_grad():
        tokens = net.base_model.get_video_features(**shown, return_dict=True).pooler_output[0]
    if announced := example(family).frame:
        runs = [[announced] + ["w55"] * (len(tokens) // (frames // 2))] * (frames // 2)
    else:
        runs = [["w55"] * len(tokens)]
    words = ["w1", "w2", *(word for run in runs for word in run), "w4", "w5"]
    ids = torch.tensor([[WORDS.index(word) for word in words]])
    data |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if example(family).kinds == "mm_token_type_ids":
        data["mm_token_type_ids"] = 2 * (ids == VIDEO_TOKEN_ID).long()
    return data


def undefined(name, family):
    """Why a method is refused on a family; None where it runs."""
    cls = fopru.METHODS[name]
    newlines = family in ("llava_next", "llava_onevision")
    if {"cls", "cls_wide"} & cls.needs and family not in ("llava", "llava_next", "internvl"):
        return "no CLS token"
    if "vision" in cls.needs and not cls.selects():
        if newlines:
            return "newline tokens"
        if family == "internvl":
            return "several patches"
    if name == "pool" and newlines:
        return "newline token"
    deep = Family.registry[family].deep is not Family.deep
    if deep and cls.merge is not fopru.Pruner.merge:
        return "first layers"
    return None


def matrix():
    """Methods and families, in Markdown."""
    head = "| | " + " | ".join(FAMILIES) + " |\n" + "|---" * (len(FAMILIES) + 1) + "|\n"
    rows = []
    for name in sorted(fopru.METHODS):
        cells = [undefined(name, family) or "✓" for family in FAMILIES]
        rows.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return head + "\n".join(rows)
