"""Evenly spaced tokens: the control that covers the whole picture and looks at nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fopru.encoding import EncodedImage
from fopru.picking import lattice, spaced
from fopru.pruner import Pruner


@dataclass(frozen=True)
class Uniform(Pruner, name="uniform"):
    """Keep k tokens on an even lattice: kh x kw of them with kh / kw near H / W, the rest evenly
    spaced among the tokens in between.

    Row i of the lattice is row floor((i + 1/2) H / kh) of the grid, columns alike.
    """

    def select(self, image: EncodedImage, k: int) -> Tensor:
        (view,) = image.grid.views
        high, wide = lattice(view.height, view.row_width, k)
        rows, columns = spaced(view.height, high), spaced(view.row_width, wide)
        kept = (rows[:, None] * view.row_width + columns).flatten()
        rest = torch.ones(view.n_tokens, dtype=torch.bool)
        rest[kept] = False
        left = rest.nonzero().flatten()
        kept = torch.cat([kept, left[spaced(len(left), k - len(kept))]])
        return kept.sort().values.to(image.features.device)
