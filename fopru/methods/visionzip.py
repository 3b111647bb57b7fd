"""VisionZip: dominant tokens, and contextual ones that gather the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fopru.arguments import check_share
from fopru.encoding import EncodedImage
from fopru.methods.cls import CLS
from fopru.picking import nearest, remaining, top, unit
from fopru.pruned import Merged


@dataclass(frozen=True)
class VisionZip(CLS, name="visionzip"):
    """Keep dominant tokens, and contextual ones that gather the rest (Yang et al., "VisionZip",
    CVPR 2025, arXiv 2412.04467).

    The k - C tokens that CLS attends to most are dominant. Of the rest, C evenly spaced ones become
    contextual: before the projector, each gets the mean of those whose keys (averaged over heads)
    are most like its own. C is floor(k * contextual), by default 10 of 64, as the authors choose.
    They count the CLS token, which our models drop, among the dominant ones, and append contextual
    tokens at the end; here these stand in their places. Views with newline tokens are refused.

    Where the tower has no CLS token, `attention` decides as in `fopru.CLS`; keys are as elsewhere.
    The authors' code for Qwen2.5-VL averages what the four patches of a token receive
    (github.com/JIA-Lab-research/VisionZip, issue 31); here models that make one token of several
    patches are refused, since it has no features before the projector.

    Args:
        contextual: The share of k that is contextual, in [0, 1).
    """

    contextual: float = 10 / 64
    needs: ClassVar[frozenset[str]] = frozenset({"cls", "keys", "vision"})

    def __post_init__(self):
        super().__post_init__()
        check_share("contextual", self.contextual, "[0, 1)")

    def merge(self, image: EncodedImage, k: int) -> Merged:
        n = len(image.features)
        count = min(int(k * self.contextual), n - k)
        dominant = top(image.significance, k - count)
        if not count:
            return Merged(dominant, image.features[dominant.to(image.features.device)])
        rest = remaining(dominant, n)
        is_target = torch.zeros(len(rest), dtype=torch.bool)
        is_target[torch.arange(count) * (len(rest) // count)] = True
        targets, others = rest[is_target], rest[~is_target]
        kept, order = torch.cat([dominant, targets]).sort()
        keys = unit(image.keys(self.layer).float().mean(1))  # (N, d_h)
        closest = nearest(keys[others], keys[targets])[1].cpu()  # (others,)
        owner = torch.full((n,), -1)
        owner[kept] = torch.arange(k)
        owner[others] = owner[targets][closest]
        vision, closest = image.vision.float(), closest.to(image.vision.device)
        sums = vision.new_zeros(count, vision.shape[1]).index_add_(0, closest, vision[others])
        counts = closest.bincount(minlength=count).clamp(min=1)
        mixed = (vision[targets] + sums / counts[:, None]).to(image.vision.dtype)
        features = torch.cat([image.features[dominant], image.family.projector(mixed)])
        return Merged(kept, features[order], owner)
