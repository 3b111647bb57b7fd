"""Figures: data in, matplotlib Axes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullLocator
from PIL import Image
from torch import Tensor
from transformers import ProcessorMixin

from fopru.efficiency import STAGES
from fopru.evaluation.controls import BLIND
from fopru.evaluation.evidence import Box, frame, frames
from fopru.pictures import to_image
from fopru.pruned import PrunedImage

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, which the colour-blind can tell apart."""

MARKERS = "os^Dvpx"


Kept = PrunedImage | Sequence[PrunedImage]


def _views(image: Image.Image, kept: Kept, processor: ProcessorMixin) -> list[tuple[Box, Tensor]]:
    """Of each view of a picture: its frame, and the (H, W) places of its patches among all tokens.

    Where each tile is a picture of its own, tokens are counted through all of them.
    """
    parts = [kept] if isinstance(kept, PrunedImage) else list(kept)
    grids = [part.grid for part in parts]
    places, start = [], 0
    for grid in grids:
        for number, view in enumerate(grid.views):
            patches = (grid.view == number) & (grid.columns >= 0)
            places.append(start + patches.nonzero().reshape(view.height, view.width))
        start += grid.n_tokens
    return list(zip(frames(image, processor, len(places)), places, strict=True))


def _drawn(views: list[tuple[Box, Tensor]], view: int | None) -> list[tuple[Box, Tensor]]:
    """The view that is asked for; else all tiles, or the first view where none is a tile."""
    if view is None:
        tiled = [part for part in views if part[0] != views[-1][0]]
        return tiled or views[:1]
    if not 0 <= view < len(views):
        raise ValueError(f"view={view}: this picture has views 0 to {len(views) - 1}.")
    return [views[view]]


def _background(image: Image.Image, processor: ProcessorMixin, ax: Axes | None) -> Axes:
    """The picture on bare axes, greyed out where the tower does not see it."""
    x0, y0, x1, y1 = frame(image, processor)
    ax = ax if ax is not None else plt.subplots(figsize=(4, 4), layout="constrained")[1]
    width, height = image.size
    ax.imshow(image, extent=(0, width, height, 0))
    for x, y, w, h in (
        (0, 0, x0, height),
        (x1, 0, width - x1, height),
        (0, 0, width, y0),
        (0, y1, width, height - y1),
    ):
        if w > 0 and h > 0:
            ax.add_patch(Rectangle((x, y), w, h, color="0.5", alpha=0.85, linewidth=0))
    ax.set(
        xlim=(min(0, x0), max(width, x1)), ylim=(max(height, y1), min(0, y0)), xticks=[], yticks=[]
    )
    return ax


def _draw(ax: Axes, cells: np.ndarray, where: Box, **style: Any) -> AxesImage:
    x0, y0, x1, y1 = where
    return ax.imshow(cells, extent=(x0, x1, y1, y0), interpolation="nearest", **style)


def overlay(
    image: Image.Image | str | Path,
    pruned_image: Kept,
    processor: ProcessorMixin,
    ax: Axes | None = None,
    view: int | None = None,
) -> Axes:
    """The picture with the patches that were pruned dimmed.

    Args:
        image: as it was given to the processor, or the file that holds it; the processor's resize
            and crop are mapped back.
        pruned_image: what was kept of it. Where each tile is a picture of its own (Idefics3,
            SmolVLM): those of all its tiles, in order.
        view: which view to draw: in LLaVA-NeXT 0 is the base view and 1 the canvas of its tiles,
            in InternVL each tile is one. None draws all tiles, or the base view.

    Raises:
        ValueError: there is no such view, the file cannot be read, or the processor makes other
            views of this picture.
    """
    image = to_image(image)
    parts = [pruned_image] if isinstance(pruned_image, PrunedImage) else list(pruned_image)
    kept = torch.cat([torch.zeros(p.n_full).index_fill(0, p.kept, 1) for p in parts]) > 0  # (N,)
    drawn = _drawn(_views(image, parts, processor), view)
    ax = _background(image, processor, ax)
    for where, places in drawn:
        shade = np.zeros((*places.shape, 4))
        shade[..., 3] = np.where(kept[places], 0, 0.72)
        _draw(ax, shade, where)
    shown = kept if view is None else kept[drawn[0][1]]
    of = "" if view is None else f" in view {view}"
    ax.set_title(f"{int(shown.sum())} of {shown.numel()} visual tokens kept{of}")
    return ax


def significance(
    image: Image.Image | str | Path,
    pruned_image: Kept,
    processor: ProcessorMixin,
    ax: Axes | None = None,
    view: int | None = None,
) -> Axes:
    """The significance of each patch as a heat map on the picture; arguments as in `overlay`.

    Raises:
        ValueError: as of `overlay`, or the method ranks nothing.
    """
    image = to_image(image)
    parts = [pruned_image] if isinstance(pruned_image, PrunedImage) else list(pruned_image)
    if any(part.significance is None for part in parts):
        raise ValueError("this picture was pruned by a method that has no significance to draw.")
    values = torch.cat([part.significance for part in parts])  # (N,)
    drawn = _drawn(_views(image, parts, processor), view)
    shown = torch.cat([values[places].flatten() for _, places in drawn])
    grey = image.convert("L").convert("RGB")  # hues are the heat map's
    ax = _background(grey, processor, ax)
    scale = {"vmin": shown.min().item(), "vmax": shown.max().item()}
    for where, places in drawn:
        heat = _draw(ax, values[places].numpy(), where, cmap="viridis", alpha=0.7, **scale)
    ax.figure.colorbar(heat, ax=ax, shrink=0.8, label="significance")
    ax.set_title("significance of each patch")
    return ax


def curves(cells: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Accuracy against the visual tokens really kept, with bands; all tokens and blind as lines.

    Args:
        cells: of one task, from `statistics.accuracy` or `statistics.bands`: method, kept, mean,
            low, high. Of "full", "none", "grey" and "swapped", which have no retention, a line is
            drawn.
    """
    ax = ax if ax is not None else plt.subplots(figsize=(6, 4), layout="constrained")[1]
    methods = list(cells.method.unique())
    lone = [m for m in methods if m == "full" or m in BLIND]
    swept = [m for m in methods if m not in lone]
    for i, method in enumerate(swept):
        part = cells[cells.method == method].sort_values("kept")
        color = PALETTE[i % len(PALETTE)]
        ax.plot(
            part.kept,
            100 * part["mean"],
            MARKERS[i % len(MARKERS)] + "-",
            color=color,
            label=method,
            markersize=4,
        )
        ax.fill_between(part.kept, 100 * part.low, 100 * part.high, color=color, alpha=0.15, lw=0)
    for method, style in zip(lone, ("-", ":", "--", "-."), strict=False):
        mean = 100 * cells[cells.method == method]["mean"].item()
        ax.axhline(mean, color="0.5", linestyle=style, label=method, linewidth=1)
    ax.set(xlabel="visual tokens kept", ylabel="accuracy (%)", xscale="log", ylim=(0, 102))
    ticks = np.unique(cells[cells.method.isin(swept)].kept.round().astype(int))
    ax.set_xticks(ticks[:: max(1, -(-len(ticks) // 8))], minor=False)
    ax.xaxis.set_major_formatter("{x:.0f}")
    ax.xaxis.set_minor_locator(NullLocator())
    ax.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def stages(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Seconds of each stage of an answer, one on the other: a bar for each way to answer.

    Args:
        table: of `fopru.measure`, one batch size; decode counts for all of `new_tokens`.

    Raises:
        ValueError: several batch sizes.
    """
    if (batches := sorted(set(table.batch)))[1:]:
        raise ValueError(f"table: has batch sizes {batches}; draw each apart.")
    ax = ax if ax is not None else plt.subplots(figsize=(6, 3.2), layout="constrained")[1]
    steps = table.new_tokens.where(table.stage == "decode", 2) - 1
    ways = table.method + "\n" + table.visual.astype(str) + " tokens"
    parts = table.assign(seconds=table.seconds * steps, way=ways)
    wide = parts.pivot_table(index="way", columns="stage", values="seconds", sort=False)
    left = np.zeros(len(wide))
    for stage, color in zip(STAGES, PALETTE, strict=False):
        if stage in wide:
            ax.barh(wide.index, wide[stage].fillna(0), left=left, color=color, label=stage)
            left += wide[stage].fillna(0).to_numpy()
    if "end to end" in wide:
        ax.plot(wide["end to end"], wide.index, "k|", markersize=14, label="end to end, apart")
    ax.invert_yaxis()
    ax.set(xlabel="time (s)")
    ax.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def break_even(
    saved: Callable[[int, int], float],
    text: Sequence[int],
    answer: Sequence[int],
    ax: Axes | None = None,
) -> Axes:
    """Share of an answer's time that pruning saves, over lengths of text and answer; a line where
    it neither saves nor loses.

    Args:
        saved: of text and answer length, the share: `Latency.saved` with the rest filled in.
        text, answer: lengths in tokens.
    """
    ax = ax if ax is not None else plt.subplots(figsize=(5, 3.6), layout="constrained")[1]
    shares = 100 * np.array([[saved(t, a) for t in text] for a in answer])
    most = max(abs(shares).max(), 1e-9)
    mesh = ax.pcolormesh(
        text, answer, shares, cmap="PuOr", vmin=-most, vmax=most, shading="nearest"
    )
    if (shares < 0).any() and (shares > 0).any():
        ax.contour(text, answer, shares, levels=[0], colors="black")
    ax.set(xlabel="text tokens", ylabel="answer tokens", xscale="log", yscale="log")
    ax.figure.colorbar(mesh, ax=ax, label="time saved (%)")
    return ax


def training(log: pd.DataFrame) -> Figure:
    """Losses and accuracies of a training run, from the `log.csv` that `fopru pocket train` writes.

    Args:
        log: columns step, tower, answer (losses), and one per task (accuracy in [0, 1]).
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for name in ("tower", "answer"):
        left.plot(log["step"], log[name], label=name)
    left.set(xlabel="step", ylabel="loss (nats)", yscale="log")
    for name in log.columns.drop(["step", "tower", "answer"]):
        right.plot(log["step"], 100 * log[name], label=name)
    right.set(xlabel="step", ylabel="accuracy (%)", ylim=(0, 100))
    left.legend(frameon=False, fontsize="small")
    right.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
