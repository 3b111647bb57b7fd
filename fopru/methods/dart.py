"""DART: keep what duplicates the pivots least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from fopru.encoding import EncodedImage
from fopru.picking import top
from fopru.pruner import Pruner


@dataclass(frozen=True)
class DART(Pruner, name="dart"):
    """Duplication-aware reduction (Wen et al., arXiv 2502.11494): max(1, k // 8) pivots of largest
    key norm, and the tokens whose largest cosine to any pivot is smallest.

    The authors work on keys and states inside the LLM; this is the same rule on the vision side:
    key norms of the tapped block, mean over heads, and cosines of the features that the LLM would
    get.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"keys"})

    def score(self, image: EncodedImage) -> Tensor:
        return image.keys(self.layer).float().norm(dim=2).mean(1)

    def select(self, image: EncodedImage, k: int) -> Tensor:
        pivots = top(image.significance, max(1, k // 8))
        unit = F.normalize(image.features.float(), dim=1)
        unlike = -(unit @ unit[pivots].T).amax(1)  # (N,)
        unlike[pivots] = float("inf")
        return top(unlike, k)
