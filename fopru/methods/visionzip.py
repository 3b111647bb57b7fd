"""VisionZip: dominant tokens, and contextual ones that gather the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fopru.arguments import check_share
from fopru.encoding import EncodedImage
from fopru.picking import top
from fopru.pruner import Merged, Pruner


@dataclass(frozen=True)
class VisionZip(Pruner, name="visionzip"):
    """Dominant and contextual tokens (Yang et al., "VisionZip", CVPR 2025, arXiv 2412.04467).

    The k - C tokens with most CLS attention are dominant. Of the rest, C evenly spaced ones become
    contextual: each is added to the mean of those whose keys (mean over heads) are most like its
    own, before the projector. C = floor(k * contextual), 10 of 64 as the authors choose. They count
    CLS, which our models drop, among the dominant, and append contextual tokens at the end; here
    these stand in their places. Views with newline tokens are refused.

    Args:
        contextual: share of k that is contextual, in [0, 1).
    """

    contextual: float = 10 / 64
    needs: ClassVar[frozenset[str]] = frozenset({"cls", "keys", "vision"})

    def __post_init__(self):
        super().__post_init__()
        check_share("contextual", self.contextual, "[0, 1)")

    def score(self, image: EncodedImage) -> Tensor:
        return image.tap("cls", self.layer)

    def merge(self, image: EncodedImage, k: int) -> Merged:
        n = len(image.features)
        count = min(int(k * self.contextual), n - k)
        dominant = top(image.significance, k - count)
        if not count:
            return Merged(dominant, image.features[dominant], list(dominant[:, None]))
        left = torch.ones(n, dtype=torch.bool, device=dominant.device)
        left[dominant] = False
        rest = left.nonzero().flatten()
        step = len(rest) // count
        is_target = torch.zeros(len(rest), dtype=torch.bool, device=rest.device)
        is_target[torch.arange(count) * step] = True
        targets, others = rest[is_target], rest[~is_target]
        keys = F.normalize(image.keys(self.layer).float().mean(1), dim=1)  # (N, d_h)
        nearest = (keys[others] @ keys[targets].T).argmax(1)  # (others,)
        vision = image.vision.float()
        sums = torch.zeros(count, vision.shape[1], device=vision.device)
        sums.index_add_(0, nearest, vision[others])
        counts = torch.bincount(nearest, minlength=count).clamp(min=1)
        mixed = (vision[targets] + sums / counts[:, None]).to(image.vision.dtype)
        kept, order = torch.cat([dominant, targets]).sort()
        features = torch.cat([image.features[dominant], image.family.projector(mixed)])
        members = [torch.cat([t[None], others[nearest == i]]) for i, t in enumerate(targets)]
        sources = [*dominant[:, None], *members]
        return Merged(kept, features[order], [sources[i] for i in order.tolist()])
