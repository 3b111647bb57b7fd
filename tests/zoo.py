"""Tiny random models of every family, and inputs for them: made here, nothing is downloaded.

Processors of some families want torchvision, so prompts are put together here: each image processor
makes the pixels, the model itself says how many tokens a picture becomes.
"""

import re
from copy import deepcopy
from functools import cache
from pathlib import Path

import numpy as np
import others
import tiny
import torch
import transformers as hf
from packaging.version import Version
from tiny import IMAGE_TOKEN_ID, SIDE, WORDS

import fopru
from fopru.families import Family, coverage
from fopru.families.llava_next import LlavaNext
from fopru.significance import AXES
from fopru.versions import INSTALLED

VIDEO_TOKEN_ID = WORDS.index("w55")
EVERY = list(Family.registry)
FAMILIES = [name for name in EVERY if Family.registry[name].depth is not None]
"""Those with a tower, whose attention FoPru reads."""
LATE = {"gemma4": Version("5.24")}
"""The transformers from which a model's own forward takes videos, where not always."""
VIDEO = [
    name
    for name in FAMILIES
    if Family.registry[name].video is not None and LATE.get(name, INSTALLED) <= INSTALLED
]
BEAMS = dict.fromkeys(("qwen3_5", "exaone4_5", "aria"), Version("5.21"))
"""The transformers whose own beams read the right pictures, where not always: before, it repeats
the pictures of a batch row by row of their tensor, whichever prompt they belong to."""
SPATIAL = [name for name in FAMILIES if Family.registry[name].spatial]
NEW = [name for name in FAMILIES if name not in ("llava", "llava_next")]
CLS = ["llava", "llava/dinov2", "llava_next", "internvl"]
"""Types whose towers have a CLS token."""


@cache
def example(family):
    kind = Family.registry.get(family)
    return others.EXAMPLES[family]() if kind is None else kind.example(family)


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


def built(config, attention="sdpa", dtype=torch.float32):
    """A model whose attention is far from uniform, so that rankings are not decided by noise."""
    torch.manual_seed(0)
    net = hf.AutoModelForImageTextToText.from_config(config)
    tiny.shake(net)
    net.set_attn_implementation(attention)
    net.generation_config.eos_token_id = None
    net.generation_config.pad_token_id = 0
    net.generation_config.suppress_tokens = [IMAGE_TOKEN_ID, VIDEO_TOKEN_ID]
    return net.to(dtype).eval()


@cache
def _once(family, attention, dtype):
    return built(config(family), attention, dtype)


def model(family, attention="sdpa", dtype=torch.float32):
    """A copy of a family's model, which is built once."""
    return deepcopy(_once(family, attention, dtype))


def beams(family):
    """Whether the model's own beams, with its own pictures, can be compared with."""
    return BEAMS.get(family, INSTALLED) <= INSTALLED


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
        sizes = _once(family, "sdpa", torch.float32).base_model
        with torch.no_grad():
            output = sizes.get_image_features(**data, return_dict=True)
        runs = ["<image> " * len(tokens) for tokens in output.pooler_output]
    left = iter(runs)
    texts = [re.sub("<image>", lambda _: next(left), text) for text in texts]
    ids = tiny.tokenizer(padding_side)(texts, padding=True, return_tensors="pt")
    data |= {"input_ids": ids.input_ids, "attention_mask": ids.attention_mask}
    if case.kinds is not None:
        pictures = (ids.input_ids == IMAGE_TOKEN_ID).long()
        data[case.kinds] = torch.zeros_like(pictures) if case.answered else pictures
    return data


def video(family, frames=4):
    """One video and a prompt with it."""
    net = _once(family, "sdpa", torch.float32)
    pictures = [tiny.image(64, 48, seed=seed) for seed in range(frames)]
    rng = np.random.default_rng(0)
    found = image_processor(family)(images=pictures, return_tensors="pt")
    if example(family).clip is not None:
        data = example(family).clip(found)
    elif "image_grid_thw" not in found:
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
    placeholder = Family.of(net).reading(data).image_token_id
    if announced := example(family).frame:
        (grid,) = Family.of(net).reading(data).grids(data)
        runs = [[announced] + [WORDS[placeholder]] * view.n_tokens for view in grid.views]
    else:
        runs = [[WORDS[placeholder]] * len(tokens)]
    words = ["w1", "w2", *(word for run in runs for word in run), "w4", "w5"]
    ids = torch.tensor([[WORDS.index(word) for word in words]])
    data |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if example(family).kinds == "mm_token_type_ids":
        data["mm_token_type_ids"] = 2 * (ids == placeholder).long()
    return data


def undefined(name, family):
    """Why a method is refused on a type; None where it runs."""
    method, adapter = fopru.METHODS[name], Family.registry[family]
    if "view" not in method.shares:
        return "takes videos"
    if "pixels" in method.needs:
        return None if adapter.patchwise else "before the vision tower"
    if family not in FAMILIES and method.needs & {*AXES, "keys"}:
        return "no stack of attention blocks"
    newlines = issubclass(adapter, LlavaNext)
    if adapter.deep is not Family.deep and method.merge is not fopru.Pruner.merge:
        return "first layers"
    if "vision" in method.needs and not method.selects():
        if newlines:
            return "newline tokens"
        if adapter.merges:
            return "several patches"
    if name in ("pool", "vscan") and newlines:
        return "newline token"
    return None


def refusals():
    """Which methods are refused on which types, in Markdown."""
    where = {}  # (why, types) -> methods
    for name in sorted(name for name, cls in fopru.METHODS.items() if "view" in cls.shares):
        why = {}
        for family in EVERY:
            if reason := undefined(name, family):
                why.setdefault(reason.removesuffix("s"), []).append(f"`{family}`")
        for reason, types in why.items():
            where.setdefault((reason, ", ".join(types)), []).append(f"`{name}`")
    rows = ["| methods | are refused on | because of |", "|---|---|---|"]
    for (reason, types), names in where.items():
        rows.append(f"| {', '.join(names)} | {types} | {REASONS[reason]} |")
    return "\n".join(rows)


REASONS = {
    "no stack of attention block": "no vision tower, so that there is no attention to read",
    "first layer": "features for the LLM's first layers, which a new token does not have",
    "before the vision tower": "towers that take pictures whole: no patch can be left out",
    "newline token": "newline tokens, which belong to no patch",
    "several patche": "tokens made of several patches: there is no new one before the projector",
}


def write_models():
    """Bring the generated tables of the book's page on models up to date."""
    path = Path(__file__).parents[1] / "book" / "models.md"
    text = path.read_text()
    for table in (coverage.families(), refusals(), coverage.table()):
        head = table.splitlines()[0]
        text = re.sub(re.escape(head) + r"\n(\|.*\n)+", lambda _: f"{table}\n", text)  # noqa: B023
    path.write_text(text)
