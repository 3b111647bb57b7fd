"""HiPrune: what a middle block looks at, what lies around it, and what the last block looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fopru.arguments import check_integer, check_share
from fopru.encoding import EncodedImage, Tap
from fopru.families import Family
from fopru.picking import ranked, remaining, top
from fopru.pruner import Pruner


@dataclass(frozen=True)
class HiPrune(Pruner, name="hiprune"):
    """Keep objects, their neighbours, and the whole picture's registers (Liu et al., "HiPrune",
    arXiv 2508.00553, sections 4.1 to 4.3).

    All scores are attention received: how much the patches look at a token, averaged over heads.
    Anchors are the round(k * alpha / 5) tokens that a middle block looks at most. Buffers are the
    patches to the left, to the right, above and below each anchor; as in the paper's equation 5 the
    patch after the last one of a row is the first one of the next row. Registers are those of the
    rest that the block whose output the model uses looks at most. Where anchors and buffers are
    more than k, anchors are taken in the order of their scores while their buffers fit.

    With `alpha=0`, and wherever k * alpha / 5 rounds to 0, this is `FoPru(axis="received")`.

    Args:
        alpha: The share of k that goes to anchors and buffers, in [0, 1].
        object_layer: The 0-based block that anchors are taken from, negative from the end. None is
            the block at 3/8 of the depth, the authors' choice for CLIP-L (8 of 24); of a tower in
            which few blocks see the whole picture the closest one, theirs for Qwen2.5-VL (15).
    """

    alpha: float = 0.1
    object_layer: int | None = None
    needs: ClassVar[frozenset[str]] = frozenset({"received"})

    def __post_init__(self):
        super().__post_init__()
        check_share("alpha", self.alpha)
        if self.object_layer is not None:
            check_integer("object_layer", self.object_layer)

    def _object_layer(self, family: Family) -> int:
        return family.nearest_block(3 / 8) if self.object_layer is None else self.object_layer

    def taps(self, family: Family) -> set[Tap]:
        return {*super().taps(family), Tap(family.block(self._object_layer(family)), "received")}

    def score(self, image: EncodedImage) -> Tensor:
        return image.tap("received", self.layer)

    def select(self, image: EncodedImage, k: int) -> Tensor:
        chosen = torch.zeros(len(image.features), dtype=torch.bool)
        patches = image.patches.cpu().nonzero().flatten()  # (P,) their places among the tokens
        scores = image.tap("received", self._object_layer(image.family)).cpu()[patches]
        (view,) = image.grid.views
        for anchor in ranked(scores)[: round(k * self.alpha / 5)].tolist():
            near = (anchor, anchor - 1, anchor + 1, anchor - view.width, anchor + view.width)
            more = chosen.clone()
            more[patches[[place for place in near if 0 <= place < len(patches)]]] = True
            if more.sum() > k:
                break
            chosen = more
        there = chosen.nonzero().flatten()
        if missing := k - len(there):
            rest = remaining(there, len(chosen))
            chosen[rest[top(image.significance[rest], missing)]] = True
        return chosen.nonzero().flatten()
