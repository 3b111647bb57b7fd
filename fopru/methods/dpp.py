"""Determinantal point processes: keep tokens that are unlike each other, and fit the question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fopru.encoding import EncodedImage
from fopru.picking import RELATIVE, greedy_map, unit
from fopru.pruner import Pruner

EPSILON = 1e-6
"""What the least relevant token's relevance is instead of 0."""


@dataclass(frozen=True)
class DPP(Pruner, name="dpp"):
    """Keep the tokens that span the largest volume, found greedily (Chen et al., "Fast Greedy MAP
    Inference for Determinantal Point Process", NeurIPS 2018, arXiv 1709.05135).

    Each next token is the one that adds most to the determinant of the matrix of cosines between
    kept tokens. The cosines are those of the features that the language model would get. All tokens
    add the same at first, so the first one stays. Where none adds more than 1e-6 to the squared
    volume, since features are linearly dependent, those that add most still go first. Ties go to
    the lower index.
    """

    def select(self, image: EncodedImage, k: int) -> Tensor:
        return greedy_map(unit(image.features), k)


@dataclass(frozen=True)
class CDPruner(DPP, name="cdpruner"):
    """Weigh the volume by how relevant each token is to the question (Zhang et al., "Beyond
    Attention or Similarity", arXiv 2506.10967): a conditional determinantal point process.

    The authors take relevance from CLIP's text tower, which LLaVA does not have. Here it is the
    mean cosine of a token's features with the language model's embeddings of the prompt's text,
    scaled to (0, 1] over the view.

    Args:
        sign: 1 prefers the tokens that are most like the text, -1 those that are least like it.

    Raises:
        ValueError: while pruning, if a prompt has no text.
    """

    sign: int = 1
    needs: ClassVar[frozenset[str]] = frozenset({"text"})

    def __post_init__(self):
        super().__post_init__()
        if self.sign not in (-1, 1):
            raise ValueError(f"sign={self.sign!r}: must be 1 or -1.")

    def score(self, image: EncodedImage) -> Tensor:
        if not len(image.text):
            raise ValueError(
                f"method {self.name!r} weighs visual tokens by the prompt's text, and the prompt "
                f"of row {image.sample} has none: add a question, or use 'dpp'."
            )
        text = unit(image.text).mean(0)  # (d,)
        relevance = self.sign * (unit(image.features) @ text)  # (N,)
        low, high = relevance.min(), relevance.max()
        if high - low <= RELATIVE:  # as of a picture of one color: only rounding parts them
            return torch.ones_like(relevance)
        return (relevance - low + EPSILON) / (high - low + EPSILON)

    def select(self, image: EncodedImage, k: int) -> Tensor:
        points = unit(image.features)
        return greedy_map(points, k, image.significance.double().to(points.device))
