"""Kept tokens speak for those they replace: the language model attends to each by its mass.

A kept token's mass is the number of visual tokens that are most like it, itself included. In
`with pruner(model)` the attention logits on its key get the logarithm of that, in every layer and
for every later query, as if it stood there that many times at one position. Sources: proportional
attention in ToMe (arXiv 2210.09461, section 3) and DyMU (arXiv 2504.17040), there for merged
tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WEIGHTS = ("none", "mass")


def masses(features: Tensor, kept: Tensor) -> Tensor:
    """How many tokens each kept one stands for.

    Args:
        features: (N, d) of all visual tokens of a picture, as the LLM would get them.
        kept: (k,) indices.

    Returns:
        (k,) int64 that sum to N: tokens whose most similar kept token (cosine) it is, ties to the
        lower index; a kept token is its own.
    """
    kept = kept.to(features.device)
    unit = F.normalize(features.float(), dim=1)
    owner = (unit @ unit[kept].T).argmax(1)  # (N, k) -> (N,)
    owner[kept] = torch.arange(len(kept), device=owner.device)
    return owner.bincount(minlength=len(kept))
