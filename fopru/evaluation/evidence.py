"""Which visual tokens lie under the boxes that a question's answer rests on."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from PIL import Image
from torch import Tensor
from transformers import ProcessorMixin

from fopru.families import Grid

Box = tuple[float, float, float, float]


def frame(image: Image.Image, processor: ProcessorMixin) -> Box:
    """The part of a picture that the vision tower sees: (x0, y0, x1, y1) in its pixels.

    Processors with tiles take the whole picture. CLIP's scales the shorter edge and cuts out the
    centre; where LLaVA's pads to a square first, the frame reaches beyond the picture.
    """
    width, height = image.size
    images = processor.image_processor
    if hasattr(images, "image_grid_pinpoints"):
        return 0, 0, width, height
    x0, y0, x1, y1 = 0.0, 0.0, float(width), float(height)
    if getattr(images, "do_pad", False):
        side = max(width, height)
        x0, y0 = (width - side) / 2, (height - side) / 2
        x1, y1 = x0 + side, y0 + side
    size = dict(images.size)
    if images.do_resize and not size.get("shortest_edge"):
        return x0, y0, x1, y1  # squeezed to a fixed size, nothing is cut off
    if getattr(images, "do_center_crop", False):
        crop = dict(images.crop_size)
        shorter = min(x1 - x0, y1 - y0)
        scale = size["shortest_edge"] / shorter if images.do_resize else 1.0
        half_width, half_height = crop["width"] / scale / 2, crop["height"] / scale / 2
        x, y = (x0 + x1) / 2, (y0 + y1) / 2
        return x - half_width, y - half_height, x + half_width, y + half_height
    return x0, y0, x1, y1


def cover(grid: Grid, frame: Box, boxes: Iterable[Box]) -> Tensor:
    """(N,) float64: the share of each visual token's patch that boxes cover; newline tokens 0.

    Args:
        grid: the picture's; every view spans the frame.
        frame: what the tower sees, from `frame`.
        boxes: in pixels of the picture; where they overlap, the larger share counts.
    """
    left, top, right, bottom = frame
    parts = []
    for view in grid.views:
        share = torch.zeros(view.height, view.row_width, dtype=torch.float64)
        for x0, y0, x1, y1 in boxes:
            across = _overlap(
                view.width, (x0 - left) / (right - left), (x1 - left) / (right - left)
            )
            down = _overlap(view.height, (y0 - top) / (bottom - top), (y1 - top) / (bottom - top))
            patches = share[:, : view.width]
            torch.maximum(patches, down[:, None] * across[None, :], out=patches)
        parts.append(share.flatten())
    return torch.cat(parts)


def _overlap(cells: int, start: float, end: float) -> Tensor:
    """(cells,) share of each of equal cells of [0, 1] that lies within [start, end]."""
    edges = torch.linspace(0, 1, cells + 1, dtype=torch.float64)
    inside = edges[1:].clamp(max=end) - edges[:-1].clamp(min=start)
    return (inside * cells).clamp(0, 1)
