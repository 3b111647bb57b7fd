"""Determinantal point processes: keep tokens that are unlike each other, and fit the question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from fopru.encoding import EncodedImage
from fopru.picking import greedy_map
from fopru.pruner import Pruner

EPSILON = 1e-6


@dataclass(frozen=True)
class DPP(Pruner, name="dpp"):
    """Greedy MAP of a determinantal point process on cosines (Chen et al., NeurIPS 2018, arXiv
    1709.05135): the token that adds most to the determinant of the kept tokens' similarities.

    Features are those that the LLM would get. Where features are linearly dependent and none adds
    more than 1e-6 to the squared volume, the largest of what is left goes on, ties to the lower
    index.
    """

    def select(self, image: EncodedImage, k: int) -> Tensor:
        unit = F.normalize(image.features.float(), dim=1)  # (N, d)
        return greedy_map(unit @ unit.T, k)


@dataclass(frozen=True)
class CDPruner(DPP, name="cdpruner"):
    """Conditional DPP (Zhang et al., "Beyond Attention or Similarity", arXiv 2506.10967): the
    kernel weighted on both sides by how relevant each token is to the question.

    The authors take relevance from CLIP's text tower, which LLaVA does not have. Here it is the
    mean cosine of a token's features with the LLM's embeddings of the prompt's text, min-max
    normalised per picture; `sign` -1 prefers the tokens that are least like the text.

    Args:
        sign: +1 or -1.
    """

    sign: int = 1
    needs: ClassVar[frozenset[str]] = frozenset({"text"})

    def __post_init__(self):
        super().__post_init__()
        if self.sign not in (-1, 1):
            raise ValueError(f"sign={self.sign!r}: must be 1 or -1.")

    def score(self, image: EncodedImage) -> Tensor:
        unit, text = (F.normalize(x.float(), dim=1) for x in (image.features, image.text))
        relevance = self.sign * (unit @ text.T).mean(1)  # (N,)
        low, high = relevance.min(), relevance.max()
        return (relevance - low + EPSILON) / (high - low + EPSILON)

    def select(self, image: EncodedImage, k: int) -> Tensor:
        unit = F.normalize(image.features.float(), dim=1) * image.significance[:, None]
        return greedy_map(unit @ unit.T, k)
