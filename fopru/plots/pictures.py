"""Pictures with what was kept of them, and where the significance lies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor
from transformers import ProcessorMixin

from fopru.evaluation.evidence import Box, frame, frames
from fopru.pictures import to_image
from fopru.pruned import PrunedImage

Kept = PrunedImage | Sequence[PrunedImage]


def _views(image: Image.Image, kept: Kept, processor: ProcessorMixin) -> list[tuple[Box, Tensor]]:
    """Return the frame of each view of a picture, and the (H, W) places of its patches among all
    tokens.

    Where each tile is a picture of its own, tokens are counted through all of them.
    """
    parts = [kept] if isinstance(kept, PrunedImage) else list(kept)
    grids = [part.grid for part in parts]
    places, start = [], 0
    for grid in grids:
        if grid.flat:
            raise ValueError(
                "where in the picture a token sits is not known of this model type, so the kept "
                "ones cannot be drawn."
            )
        for number, view in enumerate(grid.views):
            patches = (grid.view == number) & (grid.columns >= 0)
            places.append(start + patches.nonzero().reshape(view.height, view.width))
        start += grid.n_tokens
    return list(zip(frames(image, processor, len(places)), places, strict=True))


def _drawn(views: list[tuple[Box, Tensor]], view: int | None) -> list[tuple[Box, Tensor]]:
    """Return the view that is asked for; else all tiles, or the first view where none is a tile."""
    if view is None:
        tiled = [part for part in views if part[0] != views[-1][0]]
        return tiled or views[:1]
    if not 0 <= view < len(views):
        raise ValueError(f"view={view}: this picture has views 0 to {len(views) - 1}.")
    return [views[view]]


def _background(image: Image.Image, processor: ProcessorMixin, ax: Axes | None) -> Axes:
    """Draw the picture on bare axes, greyed out where the tower does not see it."""
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
    ax.spines[:].set_visible(False)
    ax.set(
        xlim=(min(0, x0), max(width, x1)), ylim=(max(height, y1), min(0, y0)), xticks=[], yticks=[]
    )
    return ax


def _draw(ax: Axes, cells: np.ndarray, where: Box, **style: Any) -> AxesImage:
    x0, y0, x1, y1 = where
    return ax.imshow(cells, extent=(x0, x1, y1, y0), interpolation="nearest", **style)


def _outline(kept: np.ndarray, where: Box) -> LineCollection:
    """Return the borders of what is kept, as lines that are seen on dark pictures too.

    Args:
        kept: (H, W) bool.
        where: The part of the picture that the patches show.
    """
    (height, width), (x0, y0, x1, y1) = kept.shape, where
    x, y = np.linspace(x0, x1, width + 1), np.linspace(y0, y1, height + 1)
    wide = np.pad(kept, 1)
    upright = np.argwhere(wide[1:-1, 1:] != wide[1:-1, :-1])
    level = np.argwhere(wide[1:, 1:-1] != wide[:-1, 1:-1])
    lines = [[(x[j], y[i]), (x[j], y[i + 1])] for i, j in upright]
    lines += [[(x[j], y[i]), (x[j + 1], y[i])] for i, j in level]
    return LineCollection(lines, colors="white", linewidths=0.5)


def overlay(
    image: Image.Image | str | Path,
    pruned_image: Kept,
    processor: ProcessorMixin,
    ax: Axes | None = None,
    view: int | None = None,
) -> Axes:
    """Draw the picture with the patches that were pruned dimmed, and the others outlined.

    Args:
        image: The picture as it was given to the processor, or the file that holds it. The
            processor's resize and crop are mapped back.
        pruned_image: What was kept of it. Where each tile is a picture of its own (Idefics3,
            SmolVLM): those of all its tiles, in order.
        view: The view to draw: in LLaVA-NeXT 0 is the base view and 1 the canvas of its tiles,
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
        ax.add_collection(_outline(kept[places].numpy(), where))
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
    """Draw the significance of each patch as a heat map on the picture; the arguments are those of
    `overlay`.

    Raises:
        ValueError: The arguments are refused as by `overlay`, or the method has no significance.
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
