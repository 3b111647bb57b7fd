"""Average pooling: the plainest way to have fewer visual tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fopru.encoding import EncodedImage
from fopru.families import Grid, UnsupportedModelError
from fopru.picking import lattice
from fopru.pruned import Merged
from fopru.pruner import Pruner


@dataclass(frozen=True)
class Pool(Pruner, name="pool"):
    """Average the features that the language model would get over cells of the grid.

    There are kh x kw cells with kh / kw near H / W, and as many as the budget allows; `n_keep`
    says how many. Cells overlap by a row or a column where the grid is not divisible by them, as
    in torch's adaptive pooling. A new token stands at the middle of its cell. Views with newline
    tokens are refused.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"grid"})
    shares: ClassVar[tuple[str, ...]] = ("view",)

    def budgets(self, grid: Grid) -> list[int]:
        sizes = []
        for view, k in zip(grid.views, super().budgets(grid), strict=True):
            if view.newline:
                raise UnsupportedModelError(
                    "method 'pool' averages rectangles of patches, and this family ends each row "
                    "of a picture with a newline token: it is undefined here."
                )
            high, wide = lattice(view.height, view.width, k)
            sizes.append(high * wide)
        return sizes

    def merge(self, image: EncodedImage, k: int) -> Merged:
        (view,) = image.grid.views
        high, wide = shape(view.height, view.width, k)
        table = image.features.unflatten(0, (view.height, view.width))  # (H, W, d)
        pooled = F.adaptive_avg_pool2d(table.permute(2, 0, 1).float(), (high, wide))  # (d, kh, kw)
        (rows, row), (columns, column) = _cells(view.height, high), _cells(view.width, wide)
        kept = (rows[:, None] * view.width + columns).flatten()
        owner = (row[:, None] * wide + column).flatten()
        return Merged(kept, pooled.flatten(1).T.to(image.features.dtype), owner)


def shape(height: int, width: int, k: int) -> tuple[int, int]:
    """The lattice of exactly k cells that the smallest budget gives."""
    sizes = (lattice(height, width, budget) for budget in range(k, height * width + 1))
    return next(size for size in sizes if size[0] * size[1] == k)


def _cells(n: int, m: int) -> tuple[Tensor, Tensor]:
    """Return the middle of each of the m stretches of range(n) that pooling averages, (m,), and the
    stretch that each place is in, (n,): of two that overlap the one whose middle the place is, or
    else the first."""
    cells = torch.arange(m)
    starts, ends = cells * n // m, -(-(cells + 1) * n // m)
    middles = (starts + ends - 1) // 2
    inside = torch.arange(n) * m // n
    inside[middles] = cells
    return middles, inside
