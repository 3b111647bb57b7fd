"""Where the visual tokens of a picture sit."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor


class View(NamedTuple):
    """One rectangle of visual tokens: the base picture, or the canvas of its tiles."""

    height: int
    width: int
    newline: bool = False
    """Whether a learned newline token ends each row (LLaVA-NeXT's canvas)."""

    @property
    def row_width(self) -> int:
        """Tokens in one row, its newline included."""
        return self.width + self.newline

    @property
    def n_tokens(self) -> int:
        return self.height * self.row_width


@dataclass(frozen=True)
class Grid:
    """Where the N visual tokens of one picture sit: view after view, each in reading order.

    The frames of a video are its views. A view without columns is a lone newline token. A grid
    follows from sizes alone, before anything is encoded, so `Pruner.n_keep(grid)` is pure.
    """

    views: tuple[View, ...]
    video: bool = False
    """Whether the views are the frames of a video, behind which a lone newline token may stand."""
    flat: bool = False
    """Whether nothing is known of the tokens but their order: rows and columns then say nothing of
    the picture."""

    @property
    def n_tokens(self) -> int:
        return sum(view.n_tokens for view in self.views)

    @cached_property
    def view(self) -> Tensor:
        """(N,) int64: which of `views` each token is in."""
        sizes = torch.tensor([view.n_tokens for view in self.views])
        return torch.arange(len(self.views)).repeat_interleave(sizes)

    @cached_property
    def rows(self) -> Tensor:
        """(N,) int64: row of each token within its view."""
        return torch.cat([torch.arange(v.n_tokens) // v.row_width for v in self.views])

    @cached_property
    def columns(self) -> Tensor:
        """(N,) int64: column of each token within its view, -1 for a newline token."""
        columns = torch.cat([torch.arange(v.n_tokens) % v.row_width for v in self.views])
        widths = torch.tensor([v.width for v in self.views])[self.view]
        return columns.where(columns < widths, -1)


def runs(ids: Tensor, token_id: int) -> list[int]:
    """The lengths of the unbroken runs of a token in input_ids (B, L), row by row."""
    steps = torch.nn.functional.pad((ids == token_id).int(), (1, 1)).diff(dim=1)
    begins, ends = ((steps == step).nonzero()[:, 1] for step in (1, -1))
    return (ends - begins).tolist()
