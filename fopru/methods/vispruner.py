"""VisPruner: half for attention, half for what is unlike the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fopru.arguments import check_share
from fopru.encoding import EncodedImage
from fopru.pruner import Pruner

STEP = 8
"""Tokens removed at a time while the diverse half is sought."""


@dataclass(frozen=True)
class VisPruner(Pruner, name="vispruner"):
    """Important and diverse tokens (Zhang et al., "Beyond Text-Visual Attention", ICCV 2025, arXiv
    2412.01818, section 4): floor(k * ratio) by CLS attention; of the rest, ordered by it, near
    duplicates are removed 8 at a time until k are left.

    In each round the rest is split in turns into two halves, and the tokens of the first that are
    most like one of the second (cosine of the tower's features) go. With an odd number the first
    half has one more, where the authors' code would not run.

    Args:
        ratio: share of k kept for attention, in [0, 1].
    """

    ratio: float = 0.5
    needs: ClassVar[frozenset[str]] = frozenset({"cls", "vision"})

    def __post_init__(self):
        super().__post_init__()
        check_share("ratio", self.ratio)

    def score(self, image: EncodedImage) -> Tensor:
        return image.tap("cls", self.layer)

    def select(self, image: EncodedImage, k: int) -> Tensor:
        order = image.significance.sort(descending=True, stable=True).indices
        important = int(k * self.ratio)
        unit = F.normalize(image.vision.float(), dim=1)
        rest = order[important:]
        while len(rest) > k - important:
            if len(rest) == 1:
                rest = rest[:0]
                break
            a, b = rest[0::2], rest[1::2]
            remove = min(STEP, len(rest) - (k - important), len(a))
            alike = (unit[a] @ unit[b].T).amax(1)  # (|a|,)
            by_likeness = alike.sort(descending=True, stable=True).indices
            rest = torch.cat([a[by_likeness[remove:]], b])
        return torch.cat([order[:important], rest]).sort().values
