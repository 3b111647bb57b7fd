"""Where the visual tokens of a picture lie, and which of them lie under given boxes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from PIL import Image
from torch import Tensor
from transformers import ProcessorMixin
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from fopru.families import Grid
from fopru.videos import Video

Box = tuple[float, float, float, float]
"""(x0, y0, x1, y1), in pixels of the picture where nothing else is said."""


def frame(image: Image.Image, processor: ProcessorMixin) -> Box:
    """Return the part of a picture that the vision tower sees: (x0, y0, x1, y1) in its pixels.

    Processors that cut a picture into tiles take the whole of it, and `frames` says what each
    tile shows. CLIP's scales the shorter edge and cuts out the centre; where LLaVA's pads to a
    square first, the frame reaches beyond the picture.
    """
    width, height = image.size
    images = processor.image_processor
    if hasattr(images, "image_grid_pinpoints") or hasattr(images, "do_image_splitting"):
        return 0, 0, width, height
    x0, y0, x1, y1 = 0.0, 0.0, float(width), float(height)
    size = dict(images.size or {})  # Gemma 4 takes what fits into its number of patches
    if getattr(images, "do_pad", False) and not size.get("longest_edge"):  # Pixtral's pads batches
        side = max(width, height)
        x0, y0 = (width - side) / 2, (height - side) / 2
        x1, y1 = x0 + side, y0 + side
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


def frames(image: Image.Image | Video, processor: ProcessorMixin, n_views: int) -> list[Box]:
    """Return the part of a picture that each of its views shows: (x0, y0, x1, y1) in its pixels.

    InternVL, Idefics3 and SmolVLM stretch the picture to a whole number of tiles, and after the
    tiles comes a view of all of it. The views of all other families span the same frame; those of a
    video are its frames, which are not cut.

    Args:
        n_views: How many views the picture has: all those of its grid, or of all its grids where
            each tile is a picture of its own (Idefics3, SmolVLM).

    Raises:
        ValueError: the processor makes another number of views of this picture, or they are crops
            of Gemma 3's pan-and-scan.
    """
    if isinstance(image, Video):
        width, height = image.frames[0].size
        return [(0, 0, width, height)] * n_views
    whole, cut = frame(image, processor), tiles(image, processor)
    if cut is None:
        if n_views > 1 and hasattr(processor.image_processor, "do_pan_and_scan"):
            raise ValueError(
                f"n_views={n_views}: where the crops of Gemma 3's pan-and-scan lie is not known; "
                "give the first view alone, or turn do_pan_and_scan off."
            )
        return [whole] * n_views
    rows, columns = cut
    width, height = image.width / columns, image.height / rows
    parts = [
        (x * width, y * height, (x + 1) * width, (y + 1) * height)
        for y in range(rows)
        for x in range(columns)
    ]
    parts += [whole] * (len(parts) > 1)
    if n_views != len(parts):
        raise ValueError(
            f"n_views={n_views}: this processor makes {len(parts)} of a picture of {image.width} x "
            f"{image.height} pixels. Where each tile is a picture of its own give all of them, and "
            "set on the processor what was set when it was called."
        )
    return parts


def tiles(image: Image.Image, processor: ProcessorMixin) -> tuple[int, int] | None:
    """Return the rows and columns of the tiles that a picture is cut into: (1, 1) where it is small
    enough to stay whole, None where this processor makes no tiles."""
    images = processor.image_processor
    if hasattr(images, "do_image_splitting"):  # Idefics3, SmolVLM
        found = images([image], return_row_col_info=True)
        return max(1, found["rows"][0][0]), max(1, found["cols"][0][0])
    if not hasattr(images, "crop_to_patches"):
        return None
    sides, side = (image.height, image.width), dict(images.size)  # InternVL
    most = images.min_patches, images.max_patches
    columns, rows = get_optimal_tiled_canvas(sides, (side["height"], side["width"]), *most)
    return rows, columns


def cover(grid: Grid, frame: Box | Sequence[Box], boxes: Iterable[Box]) -> Tensor:
    """Return the share of each visual token's patch that boxes cover, (N,) float64; newline tokens
    have 0.

    Args:
        grid: The grid of the picture.
        frame: What the views show: one box for each, from `frames`, or one box that all of them
            span, from `frame`.
        boxes: Boxes in pixels of the picture; where they overlap, the larger share counts.

    Raises:
        ValueError: there are more or fewer frames than views, or where the tokens sit is not known.
    """
    boxes = list(boxes)
    if grid.flat and boxes:
        raise ValueError(
            "where in the picture a token sits is not known of this model type, and so not what "
            "boxes cover: leave the evidence of the questions out."
        )
    frames = list(frame) if isinstance(frame[0], Sequence) else [frame] * len(grid.views)
    if len(frames) != len(grid.views):
        raise ValueError(f"frame: {len(frames)} boxes for a grid of {len(grid.views)} views.")
    parts = []
    for view, (left, top, right, bottom) in zip(grid.views, frames, strict=True):
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
