"""Evenly spaced tokens: the control that covers the whole picture and looks at nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fopru.encoding import EncodedImage
from fopru.picking import lattice, spaced
from fopru.pruner import Pruner


@dataclass(frozen=True)
class Uniform(Pruner, name="uniform"):
    """Keep k tokens on an even lattice.

    The lattice has kh x kw tokens with kh / kw near H / W; its row i is row floor((i + 1/2) H / kh)
    of the grid, and so are its columns. What is left of k is evenly spaced among the tokens in
    between.
    """

    shares: ClassVar[tuple[str, ...]] = ("view",)

    def select(self, image: EncodedImage, k: int) -> Tensor:
        (view,) = image.grid.views
        high, wide = lattice(view.height, view.row_width, k)
        rows, columns = spaced(view.height, high), spaced(view.row_width, wide)
        chosen = torch.zeros(view.n_tokens, dtype=torch.bool)
        chosen[(rows[:, None] * view.row_width + columns).flatten()] = True
        others = (~chosen).nonzero().flatten()
        chosen[others[spaced(len(others), k - high * wide)]] = True
        return chosen.nonzero().flatten()
