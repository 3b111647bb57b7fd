"""LLaVA-PruMerge: keep what CLS looks at, fold the neighbours in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fopru.arguments import check_choice
from fopru.encoding import EncodedImage, Tap
from fopru.families import Family, Grid
from fopru.picking import spaced, top
from fopru.pruner import Merged, Pruner

NEIGHBOURS = 32


@dataclass(frozen=True)
class PruMerge(Pruner, name="prumerge"):
    """Prune and merge (Shang et al., "LLaVA-PruMerge", arXiv 2403.15388).

    Scores are the CLS token's attention in the tower's last block, its softmax over whole queries
    and keys. To each kept token its 32 nearest others (cosine of keys) are added, weighted by their
    scores, which do not sum to 1; one more token is the weighted sum of all that were dropped. All
    before the projector. A budget of k counts that token, so k - 1 are kept; with k = 1 there is
    none. It takes the last place that is free, where the authors append it. Views with newline
    tokens are refused.

    Args:
        adaptive: keep the share of tokens whose score is an outlier (above Q3 + 1.5 IQR), as the
            authors do, instead of `retention`; the count then depends on the picture.
    """

    adaptive: bool = False
    needs: ClassVar[frozenset[str]] = frozenset({"cls_wide", "keys", "vision"})

    def __post_init__(self):
        super().__post_init__()
        check_choice("adaptive", self.adaptive, (False, True))

    @property
    def fixed_k(self) -> bool:
        """Whether k follows from sizes alone."""
        return not self.adaptive

    @property
    def block(self) -> int:
        return -1 if self.layer is None else self.layer

    def taps(self, family: Family) -> set[Tap]:
        moved = {Tap(family.block(self.block), axis) for axis in ("cls_wide", "keys")}
        return {tap for tap in super().taps(family) if tap.axis == "vision"} | moved

    def n_keep(self, grid: Grid) -> int:
        """Raises ValueError with `adaptive=True`: the count depends on the picture."""
        if self.adaptive:
            raise ValueError("adaptive=True: how many tokens are kept depends on the picture.")
        return super().n_keep(grid)

    def budgets_of(self, image: EncodedImage) -> list[int]:
        if not self.adaptive:
            return super().budgets_of(image)
        return [1 + len(self.chosen(view, None)) for view in image.views()]

    def score(self, image: EncodedImage) -> Tensor:
        return image.tap("cls_wide", self.block)

    def chosen(self, image: EncodedImage, k: int | None) -> Tensor:
        """Sorted indices of the k tokens that stay; None is for the adaptive count."""
        scores = self.score(image)
        return top(scores, outliers(scores) if k is None else k)

    def merge(self, image: EncodedImage, k: int) -> Merged:
        scores, n = image.significance, len(image.features)
        kept = self.chosen(image, None if self.adaptive else max(1, k - 1))
        unit = F.normalize(image.keys(self.block).flatten(1).float(), dim=1)
        alike = unit[kept] @ unit.T  # (k, N)
        alike[torch.arange(len(kept)), kept] = -torch.inf
        near = alike.topk(min(NEIGHBOURS, n - 1), dim=1).indices  # (k, 32)
        weighted = image.vision.float() * scores[:, None]
        mixed = image.vision[kept].float() + weighted[near].sum(1)
        sources = [torch.cat([i[None], others]) for i, others in zip(kept, near, strict=True)]
        if len(kept) < k:
            left = torch.ones(n, dtype=torch.bool, device=kept.device)
            left[kept] = False
            dropped = left.nonzero().flatten()
            mixed = torch.cat([mixed, weighted[dropped].sum(0, keepdim=True)])
            sources.append(dropped)
            kept = torch.cat([kept, dropped[-1:]])
        kept, order = kept.sort()
        features = image.family.projector(mixed.to(image.vision.dtype))[order]
        return Merged(kept, features, [sources[i] for i in order.tolist()])


@dataclass(frozen=True)
class PruMergePlus(PruMerge, name="prumerge+"):
    """PruMerge with evenly spaced tokens beside the outliers (PruMerge+, same paper).

    With a budget, a quarter of what stays is chosen by score, and the rest evenly spaced among the
    others; `adaptive=True` takes every floor(floor(1 / share) / 3)-th token, as the authors do.
    """

    def chosen(self, image: EncodedImage, k: int | None) -> Tensor:
        scores, n = self.score(image), len(image.features)
        if k is None:
            count = outliers(scores)
            step = max(1, int(n / count) // 3)
            picked = torch.arange(0, n, step, device=scores.device)
            return torch.cat([top(scores, count), picked]).unique()
        best = top(scores, max(1, k // 4))
        left = torch.ones(n, dtype=torch.bool, device=scores.device)
        left[best] = False
        others = left.nonzero().flatten()
        picked = others[spaced(len(others), k - len(best)).to(others.device)]
        return torch.cat([best, picked]).sort().values


def outliers(scores: Tensor) -> int:
    """How many scores lie above Q3 + 1.5 IQR; at least 1."""
    low, high = scores.quantile(0.25), scores.quantile(0.75)
    return max(1, int((scores > high + 1.5 * (high - low)).sum()))
