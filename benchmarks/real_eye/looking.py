"""What the tower's attention says, with no training of ours: one table of numbers, long."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy.ndimage import label
from scipy.stats import rankdata
from torch import Tensor, nn
from tqdm import tqdm
from transformers import Dinov2Model, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import fopru
from fopru.encoding import encode
from fopru.evaluation.statistics import interval
from fopru.in_llm import InLLMPruner
from fopru.redundancy import effective_rank, neighbours
from fopru.significance import SCORES, attention_scores, wider
from fopru.tapping import tapped
from real_eye.pictures import PATCH, STD, Picture, composite, photographs, pixels, square

AXES = ("received", "given", "cls")
STATES = (-2, -4)
"""Which state of the tower a LLaVA reads: the one before last, as LLaVA-1.5; and the one where the
features of this tower tell things apart best."""
RETENTIONS = (0.25, 0.1)
SIZES = (224, 336, 518)
COMPOSITES, FIRST_SEED = 200, 40_000
"""How many composites the committed table has, and from which seed on; 24 of them at all sizes."""
METHODS = tuple(
    name
    for name, kind in fopru.METHODS.items()
    if not issubclass(kind, InLLMPruner) and not {"text", "pixels"} & kind.needs
    if "view" in kind.shares
)
"""Those that need no language model and no question."""
FEW = ("fopru", "fopru-row", "cls", "divprune", "random", "uniform")
"""Those that are asked at larger sizes too."""
FREE = {
    "skimage/astronaut.png": "Eileen Collins, NASA, public domain",
    "skimage/coffee.png": "Rachel Michetti, CC0",
    "skimage/rocket.jpg": "SpaceX, CC0",
    "skimage/camera.png": "Lav Varshney, CC0",
}
"""Photographs that may be shown, with their sources as scikit-image names them."""
CAVEAT = (
    "The tower is DINOv2 ViT-S/14 as its packager tuned it for saliency maps: what that did to the "
    "attention cannot be told from here; the last blocks look so. The same command with "
    "--tower facebook/dinov2-small reads the untouched weights. Composites flatter contrast: their "
    "things have cut edges. Intervals are over pictures, which share cut-outs and backgrounds."
)


def look(
    tower: Dinov2Model,
    composites: Sequence[Picture],
    photos: Sequence[Picture],
    sizes: Sequence[int] = SIZES,
    at_all_sizes: int = 24,
) -> pd.DataFrame:
    """Every number of every picture: composites at the first size, some of them and all photographs
    at all sizes.

    Returns:
        Columns picture, set ("1", "3" things or "photograph"), size, measure, what (was looked at:
        an axis, a method ...), block (0-based; -1 what is there before the first), retention (NaN
        where nothing is pruned), value.
    """
    eyes = {state: eye(tower, state) for state in STATES}
    rows: list[dict] = []
    small = [(p, f"{len(p.shares)}", sizes[:1]) for p in composites[at_all_sizes:]]
    large = [(p, f"{len(p.shares)}", sizes) for p in composites[:at_all_sizes]]
    for picture, kind, its_sizes in tqdm(
        [*small, *large, *((p, "photograph", sizes) for p in photos)]
    ):
        for size in its_sizes:
            x, masks = picture.at(size)
            masks = [m for m in masks if m.any()]
            methods = METHODS if size == sizes[0] else FEW
            found = [*of_attention(tower, x, masks), *of_methods(eyes, x, masks, methods)]
            told = {"picture": picture.name, "set": kind, "size": size}
            rows += [told | row for row in found]
    table = pd.DataFrame(rows)
    return table.astype({"value": "float32", "size": "int16", "block": "int8"})


def row(measure: str, what: str, block: int, value: float, retention: float = np.nan) -> dict:
    return dict(measure=measure, what=what, block=block, retention=retention, value=float(value))


@torch.no_grad()
def of_attention(tower: Dinov2Model, x: Tensor, masks: list[Tensor]) -> Iterator[dict]:
    """Block by block: does attention point at the things, which direction varies more, what stands
    out, and how much the tokens repeat each other."""
    with tapped(tower, dict(enumerate(tower.encoder.layer))) as seen:
        states = tower(x, output_hidden_states=True).hidden_states
    there = torch.stack(masks).any(0)  # (P,)
    contrast = local_contrast(x)
    flat = torch.from_numpy(rankdata(contrast.numpy())) / len(contrast)  # 1 the most textured
    yield row("auc", "contrast", -1, auc(contrast, there))
    every, few = torch.ones_like(there), max(1, len(there) // 100)
    for block in range(len(tower.encoder.layer)):
        ((query, key, scaling, _),) = seen[block]
        for scores in SCORES:
            found = attention_scores(query, key, scaling, 1, AXES, scores)
            found = {axis: values[0] for axis, values in found.items()}
            chosen = wider(found["received"], found["given"], every)
            yield row("received wins", scores, block, chosen is found["received"])
            for axis, values in {**found, "fopru": chosen}.items():
                yield row("auc", f"{axis}, {scores}", block, auc(values, there))
            if scores == "probabilities":
                probabilities = found
        received, given, cls = (probabilities[axis] for axis in AXES)
        norms = states[block + 1][0, 1:].norm(dim=1)
        yield row("variance ratio", "received : given", block, received.var() / given.var())
        yield row("share on things", "received", block, received[there].sum() / received.sum())
        yield row("share on things", "cls", block, cls[there].sum() / cls.sum())
        yield row("to cls", "received", block, 1 - given.mean() * len(given))
        yield row("top share", "received", block, received.topk(few).values.sum() / received.sum())
        yield row("largest", "received / mean", block, received.max() / received.mean())
        yield row("largest", "norm / median", block, norms.max() / norms.median())
        for what, values in (("received", received), ("norm", norms)):
            top = values.topk(few).indices
            yield row("top on things", what, block, there[top].float().mean())
            yield row("top texture", what, block, flat[top].mean())
    for block, state in enumerate(states, start=-1):
        tokens = state[0, 1:]
        for what, points in (("tokens", tokens), ("tokens, mean off", tokens - tokens.mean(0))):
            yield row("effective rank", what, block, effective_rank(points))
            yield row("nearest cosine", what, block, neighbours(points).mean())


def eye(tower: Dinov2Model, state: int) -> LlavaForConditionalGeneration:
    """A LLaVA that gets the tower's features as they are; its language model says nothing."""
    width = tower.config.hidden_size
    text = LlamaConfig(
        vocab_size=4,
        hidden_size=width,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=text,
        image_token_index=3,
        vision_feature_layer=state,
        vision_feature_select_strategy="default",
    )
    model = LlavaForConditionalGeneration(config).eval()
    model.model.vision_tower = tower
    model.model.multi_modal_projector = nn.Identity()
    return model


def of_methods(
    eyes: dict[int, LlavaForConditionalGeneration],
    x: Tensor,
    masks: list[Tensor],
    methods: Sequence[str] = METHODS,
) -> Iterator[dict]:
    """What each method keeps of the things: the share of each one's patches, things of which
    nothing is left, and in how many pieces the kept patches lie. Of methods that make new tokens,
    the places at which these stand."""
    side = x.shape[-1] // PATCH
    for model in eyes.values():
        for block, retention, kept in choices(model, x, methods):
            kept["contrast"] = local_contrast(x).topk(len(kept["fopru"])).indices
            for name, places in kept.items():
                hit = torch.zeros(side**2, dtype=torch.bool)
                hit[places] = True
                shares = [(hit & mask).sum() / mask.sum() for mask in masks]
                yield row("kept", name, block, sum(shares) / len(shares), retention)
                missed = sum(share == 0 for share in shares) / len(shares)
                yield row("missed", name, block, missed, retention)
                yield row("pieces", name, block, label(hit.view(side, side))[1], retention)


def choices(
    model: LlavaForConditionalGeneration, x: Tensor, methods: Sequence[str]
) -> Iterator[tuple[int, float, dict[str, Tensor]]]:
    """The block that the model reads, each retention, and what each method keeps then."""
    inputs = {"input_ids": torch.full((1, (x.shape[-1] // PATCH) ** 2), 3), "pixel_values": x}
    pruners = {name: fopru.METHODS[name]() for name in methods}
    encoded = encode(model, inputs, list(pruners.values()))
    for retention in RETENTIONS:
        of = {n: replace(pruner, retention=retention) for n, pruner in pruners.items()}
        kept = {name: pruner.compact(encoded).images[0].kept for name, pruner in of.items()}
        yield encoded.family.block(None), retention, kept


@torch.no_grad()
def maps(tower: Dinov2Model, size: int = SIZES[0]) -> dict[str, Tensor]:
    """What a page shows of the photographs in `FREE`: "file, what" -> the picture (S, S, 3) uint8,
    each axis (blocks, P), contrast (P,), and what methods keep of it at a quarter."""
    found = {}
    for name in FREE:
        image = square(name).resize((size, size), Image.Resampling.BICUBIC)
        x, file = pixels([image]), name.split("/")[1]
        with tapped(tower, dict(enumerate(tower.encoder.layer))) as seen:
            tower(x)
        calls = [seen[block][0] for block in sorted(seen)]
        each = [attention_scores(c.query, c.key, c.scaling, 1, AXES) for c in calls]
        told = {axis: torch.cat([scores[axis] for scores in each]) for axis in AXES}
        told |= {"picture": torch.from_numpy(np.array(image)), "contrast": local_contrast(x)}
        block, _, kept = next(choices(eye(tower, STATES[0]), x, FEW))
        told |= {f"{method} at block {block}": places for method, places in kept.items()}
        found |= {f"{file}, {what}": values.contiguous() for what, values in told.items()}
    return found


def local_contrast(x: Tensor) -> Tensor:
    """(P,): the standard deviation of grey within each patch."""
    levels = x[0] * torch.tensor(STD).view(3, 1, 1)
    grey = (levels * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0)  # (S, S)
    return grey.unfold(0, PATCH, PATCH).unfold(1, PATCH, PATCH).flatten(2).flatten(0, 1).std(1)


def auc(scores: Tensor, mask: Tensor) -> float:
    """The probability that a patch of a thing scores above one of the background; ties count
    half."""
    ranks, inside = rankdata(scores.double().numpy()), mask.numpy()
    p, n = inside.sum(), (~inside).sum()
    return float((ranks[inside].sum() - p * (p + 1) / 2) / (p * n)) if p and n else float("nan")


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Means over pictures with bootstrapped intervals, one row for each number of the report."""
    keys = ["set", "size", "measure", "what", "block", "retention"]
    cells = table.dropna(subset="value").groupby(keys, dropna=False, sort=False)
    found = {key: interval(cell.value, cell.picture) for key, cell in cells}
    index = pd.MultiIndex.from_tuples(found, names=keys)
    return pd.DataFrame(found.values(), index=index, columns=["mean", "low", "high"])


def pictures(first: int, n: int) -> tuple[list[Picture], list[Picture]]:
    """n composites from this seed on, of one thing and of three in turn, and the photographs."""
    seeds = range(first, first + n)
    return [composite(seed, 1 if seed % 2 else 3) for seed in seeds], list(photographs())


def report(table: pd.DataFrame) -> str:
    """The numbers that a reader asks for first, in percent where they are shares."""
    small = table[table["size"] == table["size"].min()]
    found = summary(small[small["measure"].isin(["auc", "kept", "missed"])])
    words = found.apply(
        lambda r: f"{100 * r['mean']:.0f} [{100 * r['low']:.0f}, {100 * r['high']:.0f}]", axis=1
    )
    parts = []
    for kind in dict.fromkeys(table["set"]):
        of = words.xs((kind, "auc"), level=("set", "measure"))
        parts += [f"AUC, {kind}", of.droplevel("retention").unstack("block", "").to_string()]
        for measure in ("kept",) if kind == "photograph" else ("kept", "missed"):
            cells = words.xs((kind, measure), level=("set", "measure"))
            parts += [f"{measure}, {kind}", cells.unstack(["block", "retention"]).to_string()]
    return "\n\n".join(parts)
