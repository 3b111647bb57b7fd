"""FoPru: keep the tokens, or the rows, that the vision encoder's own attention dwells on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fopru.arguments import check_choice
from fopru.encoding import EncodedImage, Tap
from fopru.families import Family, Grid
from fopru.picking import floor_share, top
from fopru.pruner import Pruner
from fopru.significance import SCORES, wider


@dataclass(frozen=True)
class FoPru(Pruner, name="fopru"):
    """Keep the tokens, or the rows, that get most attention: Focal Pruning (Jiang et al., arXiv
    2411.14164), in three steps of significance, pruning and reordering.

    The significance of a token is an average of the attention in the block whose output the model
    uses: over heads, and then along one dimension. Kept tokens stay in the order of the picture.
    The published text does not say what becomes of the CLS token; here its row and its column are
    left out. Nor does it say whether attention is taken before or after the softmax; `scores`
    decides this.

    Towers attend within a frame (in the Qwen families, a pair of frames), and each frame's received
    attention sums to the same. With `per="clip"` scores are compared across frames all the same. A
    score is then the share of its own frame's attention that a token gets. So a frame whose
    attention is spread evenly loses to one whose attention is concentrated, and a frame that
    repeats another gets the same scores again: FoPru does not see repetition, which is what `EVS`
    is for.

    Args:
        strategy: "rank" keeps the floor(N * retention) tokens of largest significance. "row" keeps
            the floor(H * retention) rows of the grid with the largest sum, whole, each with its
            newline token if it has one. Both keep at least one. With `per="clip"` they choose among
            the tokens, or the rows, of all frames.
        axis: "received" averages over queries: how much a token is looked at. "given" averages
            over keys: how much it looks at others. "variance" takes, for each view, the one of the
            two that varies more over its patches.
        scores: "probabilities" for attention after the softmax, "logits" for that before it.
    """

    strategy: str = "rank"
    axis: str = "variance"
    scores: str = "probabilities"

    needs: ClassVar[frozenset[str]] = frozenset({"received", "given"})

    def __post_init__(self):
        super().__post_init__()
        check_choice("strategy", self.strategy, ("rank", "row"))
        check_choice("axis", self.axis, ("variance", "received", "given"))
        check_choice("scores", self.scores, SCORES)

    def taps(self, family: Family) -> set[Tap]:
        axes = ("received", "given") if self.axis == "variance" else (self.axis,)
        return {Tap(family.block(self.layer), axis, self.scores) for axis in axes}

    def score(self, image: EncodedImage) -> Tensor:
        if self.axis != "variance":
            return image.tap(self.axis, self.layer, self.scores)
        received, given = (image.tap(a, self.layer, self.scores) for a in ("received", "given"))
        return wider(received, given, image.patches)

    def budgets(self, grid: Grid) -> list[int]:
        if self.strategy == "rank":
            return super().budgets(grid)
        parts = [(sum(v.height for v in p.views), p.views[0].row_width) for p in self.parts(grid)]
        if self.tokens is None:
            return [floor_share(height, self.share) * width for height, width in parts]
        budgets = super().budgets(grid)
        for k, (_, width) in zip(budgets, parts, strict=True):
            if k % width:
                raise ValueError(
                    f"tokens={self.tokens}: strategy='row' keeps whole rows, and {k} tokens are no "
                    f"multiple of this view's {width} a row."
                )
        return budgets

    def select(self, image: EncodedImage, k: int) -> Tensor:
        if self.strategy == "rank":
            return super().select(image, k)
        view = image.grid.views[0]  # of a clip all are alike
        table = image.significance.cpu().double().view(-1, view.row_width)  # (H, W or W + 1)
        sums = table[:, : view.width].sum(1).float()  # (H,)
        rows = top(sums, k // view.row_width)
        return (rows[:, None] * view.row_width + torch.arange(view.row_width)).flatten()


@dataclass(frozen=True)
class FoPruRow(FoPru, name="fopru-row"):
    """FoPru with `strategy="row"`, under a name of its own."""

    strategy: str = "row"
