"""Average pooling: the plainest way to have fewer visual tokens."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F

from fopru.encoding import EncodedImage
from fopru.families import Grid, UnsupportedModelError
from fopru.picking import lattice
from fopru.pruner import Merged, Pruner


@dataclass(frozen=True)
class Pool(Pruner, name="pool"):
    """Average the features that the LLM would get over kh x kw cells of the grid, kh / kw near
    H / W, and kh * kw the most that the budget allows: the count is what `n_keep` says.

    A new token stands where the middle of its cell was. Views with newline tokens are refused.
    """

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
        size = shape(view.height, view.width, k)
        table = image.features.unflatten(0, (view.height, view.width))  # (H, W, d)
        pooled = F.adaptive_avg_pool2d(table.permute(2, 0, 1).float(), size)  # (d, kh, kw)
        rows, columns = (_cells(n, m) for n, m in zip((view.height, view.width), size, strict=True))
        index = torch.arange(view.n_tokens).view(view.height, view.width)
        cells = [index[a, b] for a, b in product(rows, columns)]
        kept = torch.stack([c[(len(c) - 1) // 2, (c.shape[1] - 1) // 2] for c in cells])
        features = pooled.flatten(1).T.to(image.features.dtype)
        return Merged(kept, features, [cell.flatten() for cell in cells])


def shape(height: int, width: int, k: int) -> tuple[int, int]:
    """The lattice of exactly k cells that the smallest budget gives."""
    sizes = (lattice(height, width, budget) for budget in range(k, height * width + 1))
    return next(size for size in sizes if size[0] * size[1] == k)


def _cells(n: int, m: int) -> list[slice]:
    """The m stretches of range(n) that adaptive pooling averages."""
    return [slice(i * n // m, -(-(i + 1) * n // m)) for i in range(m)]
