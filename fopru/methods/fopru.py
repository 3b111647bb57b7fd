"""FoPru: keep the tokens, or the rows, that the vision encoder's own attention dwells on."""

from __future__ import annotations

from dataclasses import dataclass

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
    """Focal Pruning (Jiang et al., arXiv 2411.14164): significance, pruning, reordering.

    Significance is the attention of the block whose output the model uses, averaged over heads,
    without the CLS row and column, then along one dimension. Tokens stay in their order. The
    published text leaves the CLS token and the softmax open: the first is dropped, and the second
    is `scores`.

    Args:
        strategy: "rank" keeps the floor(N * retention) tokens of largest significance; "row" the
            floor(H * retention) rows of the grid with the largest sum, whole, a newline token
            with its row. At least one of either.
        axis: "received" (mean over queries), "given" (mean over keys), or "variance": per view,
            the one of the two that varies more over its patches.
        scores: "probabilities", attention after the softmax; "logits", before it.
    """

    strategy: str = "rank"
    axis: str = "variance"
    scores: str = "probabilities"

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
        if self.k is None:
            return [floor_share(v.height, self.retention) * v.row_width for v in grid.views]
        budgets = super().budgets(grid)
        for k, view in zip(budgets, grid.views, strict=True):
            if k % view.row_width:
                raise ValueError(
                    f"k={self.k}: strategy='row' keeps whole rows, and {k} tokens are no multiple "
                    f"of this view's {view.row_width} a row."
                )
        return budgets

    def select(self, image: EncodedImage, k: int) -> Tensor:
        if self.strategy == "rank":
            return super().select(image, k)
        (view,) = image.grid.views
        table = image.significance.double().view(view.height, view.row_width)  # (H, W or W + 1)
        rows = top(table[:, : view.width].sum(1), k // view.row_width)
        return (rows[:, None] * view.row_width + torch.arange(view.row_width).to(rows)).flatten()


@dataclass(frozen=True)
class FoPruRow(FoPru, name="fopru-row"):
    """FoPru with `strategy="row"`, under a name of its own."""

    strategy: str = "row"
