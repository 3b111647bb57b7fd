"""SCOPE: salient tokens that cover what no kept token is like yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fopru.arguments import check_number
from fopru.encoding import EncodedImage
from fopru.methods.cls import CLS
from fopru.picking import greedy_cover, unit


@dataclass(frozen=True)
class SCOPE(CLS, name="scope"):
    """Keep salient tokens that cover the picture (Deng et al., "SCOPE", NeurIPS 2025, arXiv
    2510.24214).

    How well the kept tokens cover a token is its largest cosine to one of them, and at least 0.
    Each next token is the one for which the gain of coverage over all tokens, times its CLS
    attention to the power of `alpha`, is largest. Cosines are those of the tower's features, before
    the projector.

    Where the tower has no CLS token, `attention` decides as in `fopru.CLS`.

    Args:
        alpha: How much the CLS token's attention counts; 0 for coverage alone.
    """

    alpha: float = 1.0
    needs: ClassVar[frozenset[str]] = frozenset({"cls", "vision"})

    def __post_init__(self):
        super().__post_init__()
        check_number("alpha", self.alpha)

    def select(self, image: EncodedImage, k: int) -> Tensor:
        points = unit(image.vision)
        weights = image.significance.to(points) ** self.alpha
        return greedy_cover(lambda places: (points @ points[places].T).clamp(min=0), k, weights)
