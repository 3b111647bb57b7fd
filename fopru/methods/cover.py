"""FoPru's significance, spread over the picture: ours, for kept tokens that carry weights."""

from __future__ import annotations

import numbers
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from fopru.encoding import EncodedImage
from fopru.methods.fopru import FoPru, top


@dataclass(frozen=True)
class Cover(FoPru, name="fopru-cover"):
    """Part of the budget by rank, the rest spread: the tokens that are left, in the order of a
    Hilbert curve over the grid, are cut into as many runs of equal length, and each keeps the one
    of largest significance.

    Args:
        ranked: share of the budget that is taken by rank, in [0, 1].
    """

    ranked: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.ranked, numbers.Real) or not 0 <= self.ranked <= 1:
            raise ValueError(f"ranked={self.ranked!r}: must be a number in [0, 1].")
        if self.strategy != "rank":
            raise ValueError(f"strategy={self.strategy!r}: method {self.name!r} ranks tokens.")

    def select(self, image: EncodedImage, k: int) -> Tensor:
        (view,) = image.grid.views
        scores = image.significance
        best = top(scores, round(k * self.ranked))
        left = torch.ones(len(scores), dtype=torch.bool)
        left[best.cpu()] = False
        curve = hilbert(view.height, view.row_width)
        curve = curve[left[curve]].to(scores.device)
        cells = curve.tensor_split(k - len(best)) if k > len(best) else ()
        peaks = [cell[scores[cell].argmax()] for cell in cells]
        return torch.cat([best, torch.stack(peaks)] if peaks else [best]).sort().values


@cache
def hilbert(height: int, width: int) -> Tensor:
    """(height * width,) places of a grid in the order of a Hilbert curve over the square around it
    (D. Hilbert, "Ueber die stetige Abbildung einer Linie auf ein Flaechenstueck", 1891)."""
    side = 1
    while side < max(height, width):
        side *= 2
    x = torch.arange(width).repeat(height)
    y = torch.arange(height).repeat_interleave(width)
    along = torch.zeros_like(x)
    step = side // 2
    while step:
        right, below = (x & step > 0).long(), (y & step > 0).long()
        along += step * step * ((3 * right) ^ below)
        flipped = (below == 0) & (right == 1)
        x, y = x.where(~flipped, side - 1 - x), y.where(~flipped, side - 1 - y)
        swap = below == 0
        x, y = y.where(swap, x), x.where(swap, y)
        step //= 2
    return along.argsort()
