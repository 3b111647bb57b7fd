"""LLaVA-PruMerge: keep what CLS looks at, fold the neighbours in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fopru.arguments import check_choice
from fopru.encoding import VISION, EncodedImage, Tap
from fopru.families import Family
from fopru.methods.cls import CLS
from fopru.picking import ABSOLUTE, RELATIVE, products, remaining, spaced, top, unit
from fopru.pruned import Merged

NEIGHBOURS = 32


@dataclass(frozen=True)
class PruMerge(CLS, name="prumerge"):
    """Keep what CLS looks at, and fold neighbours in (Shang et al., "LLaVA-PruMerge", arXiv
    2403.15388).

    Scores are the CLS token's attention in the last block of the tower, with its softmax over whole
    queries and keys instead of head by head. To each kept token its 32 nearest others (cosine of
    keys) are added, weighted by their scores, which do not sum to 1. One more token is the weighted
    sum of all that were dropped. All this happens before the projector. A budget of k includes this
    additional token, so that k - 1 others are kept. With k = 1, or if no token is dropped, there is
    no additional one. It takes the last place that is free; the authors append it at the end. Views
    with newline tokens are refused.

    Where the tower has no CLS token, `attention` decides as in `fopru.CLS`: "received" is the mean
    over all patches of the same softmax over whole queries and keys. The authors name no stand-in.

    A dropped token goes into several kept ones. Its `owner` is the one that it is most like, among
    those that it is a neighbour of; if there are none, the additional token.

    Args:
        adaptive: Keep as many tokens as have an outlying score (above Q3 + 1.5 IQR), as the
            authors do, instead of `retention`. The count then depends on the picture.
    """

    adaptive: bool = False
    needs: ClassVar[frozenset[str]] = frozenset({"cls_wide", "keys", "vision"})

    def __post_init__(self):
        super().__post_init__()
        check_choice("adaptive", self.adaptive, (False, True))
        if self.adaptive and self.tokens is not None:
            raise ValueError(
                f"tokens={self.tokens}: with adaptive=True the scores say how many tokens stay; "
                "leave it out."
            )

    @property
    def fixed_k(self) -> bool:
        """Whether the number of kept tokens follows from sizes alone."""
        return not self.adaptive

    @property
    def block(self) -> int:
        """The encoder block that the method reads."""
        return -1 if self.layer is None else self.layer

    def taps(self, family: Family) -> set[Tap]:
        there, block = super().taps(family), family.block(self.block)
        return {tap if tap == VISION else tap._replace(block=block) for tap in there}

    def budgets_of(self, image: EncodedImage) -> list[int]:
        if not self.adaptive:
            return super().budgets_of(image)
        views = image.parts(self.parts(image.grid))
        chosen = ((len(self.chosen(view, None)), view.grid.n_tokens) for view in views)
        return [min(count + 1, n) for count, n in chosen]

    def score(self, image: EncodedImage) -> Tensor:
        return image.tap(f"{self.attended(image.family)}_wide", self.block)

    def chosen(self, image: EncodedImage, k: int | None) -> Tensor:
        """Sorted places of the k tokens that stay; with None as many as their scores tell."""
        scores = self.score(image).cpu()
        return top(scores, outliers(scores) if k is None else k)

    def merge(self, image: EncodedImage, k: int) -> Merged:
        n = len(image.features)
        kept = self.chosen(image, None if self.adaptive else max(1, k - 1))
        near, alike = self._neighbours(image, kept)  # (k - 1, 32)
        weighted = image.vision.float() * image.significance.to(image.vision.device)[:, None]
        mixed = image.vision[kept].float() + weighted[near].sum(1)  # (k - 1, d_v)
        best = alike.new_full((n,), -1).scatter_reduce(0, near.flatten(), alike.flatten(), "amax")
        closest = alike >= best[near] - ABSOLUTE  # (k - 1, 32)
        places = torch.arange(len(kept))[:, None].expand_as(near)[closest]
        owner = torch.full((n,), k).scatter_reduce(0, near[closest], places, "amin")
        if len(kept) < k:
            dropped = remaining(kept, n)
            mixed = torch.cat([mixed, weighted[dropped].sum(0, keepdim=True)])  # (k, d_v)
            owner.clamp_(max=len(kept))
            kept = torch.cat([kept, dropped[-1:]])
        owner[kept] = torch.arange(k)
        kept, order = kept.sort()
        features = image.family.projector(mixed.to(image.vision.dtype))[order]
        return Merged(kept, features, torch.cat([order.argsort(), torch.tensor([-1])])[owner])

    def _neighbours(self, image: EncodedImage, kept: Tensor) -> tuple[Tensor, Tensor]:
        """The 32 tokens whose keys are most like each kept one's: places and cosines, (k, 32)."""
        keys = unit(image.keys(self.block).flatten(1))  # (N, c)
        m = min(NEIGHBOURS, len(keys) - 1)
        near, alike = [], []
        for start, block in products(keys[kept], keys):
            block = block.cpu()  # (b, N)
            rows = torch.arange(len(block))
            block[rows, kept[start + rows]] = -torch.inf
            places = [top(row, m) if m else rows[:0] for row in block]
            near.append(torch.stack(places))  # (b, 32)
            alike.append(block.gather(1, near[-1]))
        return torch.cat(near), torch.cat(alike)


@dataclass(frozen=True)
class PruMergePlus(PruMerge, name="prumerge+"):
    """PruMerge with evenly spaced tokens beside the outliers (PruMerge+, same paper).

    With a budget, a quarter of what stays is chosen by score, and the rest evenly spaced among the
    others. `adaptive=True` adds every floor(floor(1 / share) / 3)-th token to the outliers, where
    `share` is theirs of all tokens, as the authors do.
    """

    def chosen(self, image: EncodedImage, k: int | None) -> Tensor:
        scores, n = self.score(image).cpu(), len(image.features)
        if k is None:
            count = outliers(scores)
            picked = torch.arange(0, n, max(1, n // count // 3))
            return torch.cat([top(scores, count), picked]).unique()
        best = top(scores, max(1, k // 4))
        others = remaining(best, n)
        return torch.cat([best, others[spaced(len(others), k - len(best))]]).sort().values


def outliers(scores: Tensor) -> int:
    """How many scores lie above Q3 + 1.5 IQR by more than rounding; at least 1."""
    low, high = scores.quantile(0.25), scores.quantile(0.75)
    border = high + 1.5 * (high - low)
    return max(1, int((scores > border + abs(border) * RELATIVE).sum()))
