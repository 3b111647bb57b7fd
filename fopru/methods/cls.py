"""The [CLS] token's attention as the score, as FasterVLM reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fopru.encoding import EncodedImage
from fopru.pruner import Pruner


@dataclass(frozen=True)
class CLS(Pruner, name="cls"):
    """Keep the k tokens that the CLS token attends to most (Zhang et al., "[CLS] Attention is All
    You Need for Training-Free Visual Token Pruning", FasterVLM, arXiv 2412.01818).

    The attention is that of the block whose output the model uses, averaged over heads. A tower
    without a CLS token raises UnsupportedModelError.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"cls"})

    def score(self, image: EncodedImage) -> Tensor:
        return image.tap("cls", self.layer)
