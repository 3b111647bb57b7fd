"""DART: keep what duplicates the pivots least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fopru.encoding import EncodedImage
from fopru.picking import nearest, top, unit
from fopru.pruner import Pruner


@dataclass(frozen=True)
class DART(Pruner, name="dart"):
    """Keep the tokens that duplicate a few pivots least (Wen et al., "DART", arXiv 2502.11494).

    The max(1, k // 8) tokens of largest key norm are the pivots, and stay. Beside them stay the
    tokens whose largest cosine to any pivot is smallest.

    The authors work on keys and hidden states inside the language model. Here the same rule is
    applied before it: the norm is that of the keys of the tapped block, averaged over its heads,
    and cosines are those of the features that the language model would get.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"keys"})

    def score(self, image: EncodedImage) -> Tensor:
        return image.keys(self.layer).float().norm(dim=2).mean(1)

    def select(self, image: EncodedImage, k: int) -> Tensor:
        pivots = top(image.significance, max(1, k // 8))
        points = unit(image.features)
        unlike = -nearest(points, points[pivots])[0]  # (N,)
        unlike[pivots] = float("inf")
        return top(unlike, k)
