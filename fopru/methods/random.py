"""Random tokens: the control that stands beside every method."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fopru.encoding import EncodedImage
from fopru.pruner import Pruner


@dataclass(frozen=True)
class Random(Pruner, name="random"):
    """Keep k tokens uniformly at random, without replacement.

    One permutation per seed and number of tokens, of which the first k are kept: the same on every
    device, whatever else is in the batch, and nested as the retention grows.

    Args:
        seed: of the permutation; average over several.
    """

    seed: int = 0

    def select(self, image: EncodedImage, k: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(image.grid.n_tokens, generator=generator)
        return order[:k].sort().values.to(image.features.device)
