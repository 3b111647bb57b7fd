"""Random tokens: the control that stands beside every method."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fopru.arguments import check_integer
from fopru.encoding import EncodedImage
from fopru.pruner import Pruner


@dataclass(frozen=True)
class Random(Pruner, name="random"):
    """Keep k tokens at random, each set of k being equally likely.

    The first k of one permutation per seed and number of tokens are kept. They are the same on
    every device and whatever else is in the batch, and a larger k keeps them and more.

    Args:
        seed: The seed of the permutation. Average over several.
    """

    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        check_integer("seed", self.seed)

    def select(self, image: EncodedImage, k: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        n = image.grid.n_tokens
        chosen = torch.zeros(n, dtype=torch.bool)
        chosen[torch.randperm(n, generator=generator)[:k]] = True
        return chosen.nonzero().flatten()
