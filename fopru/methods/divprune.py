"""DivPrune: keep the tokens that are least alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fopru.encoding import EncodedImage
from fopru.picking import cosines_of, first, products, unit
from fopru.pruner import Pruner


@dataclass(frozen=True)
class DivPrune(Pruner, name="divprune"):
    """Keep tokens that are far from each other (Alvar et al., "DivPrune", CVPR 2025, arXiv
    2503.02175, section 3).

    The distance of two tokens is 1 minus the cosine of the features that the language model would
    get. The first token is the one whose nearest neighbour is farthest away. Each next one is the
    one whose distance to the nearest kept token is largest. Ties go to the lower index.
    """

    def select(self, image: EncodedImage, k: int) -> Tensor:
        points = unit(image.features)  # (N, d)
        unlike = -torch.cat([_others(*block).amax(1) for block in products(points, points)])
        cosines, kept = cosines_of(points), [first(unlike[None])]  # (1,) each
        unlike = -cosines(kept[0], unlike)  # (N,) to the nearest of those kept
        while len(kept) < k:
            unlike[kept[-1]] = -torch.inf
            kept.append(first(unlike[None]))
            unlike = unlike.minimum(-cosines(kept[-1], unlike))
        return torch.cat(kept).sort().values


def _others(start: int, block: Tensor) -> Tensor:
    """A block of cosines, (b, N), without those of tokens to themselves."""
    rows = torch.arange(len(block), device=block.device)
    block[rows, start + rows] = -torch.inf
    return block
