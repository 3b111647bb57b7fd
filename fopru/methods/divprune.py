"""DivPrune: keep the tokens that are least alike."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fopru.encoding import EncodedImage
from fopru.picking import loneliest, spread, unit
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
        return spread(points, loneliest(points), k)
