"""Where the visual tokens of a picture sit."""

from __future__ import annotations

from collections.abc import Sequence
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
        """The number of visual tokens in the view, its newlines included."""
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
        """The number of visual tokens in all views."""
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


def samples_of(ids: Tensor | None, token_id: int, sizes: list[int]) -> list[int]:
    """Return the batch row of each picture of these sizes, found by counting placeholders.

    Raises:
        ValueError: there are no `input_ids`, or their placeholders are not those of the pictures.
    """
    if ids is None:
        raise ValueError(
            "`inputs` need input_ids: pruning shortens the prompt (inputs_embeds are "
            "not supported)."
        )
    counts = (ids == token_id).sum(1).tolist()
    if not any(counts):
        raise ValueError(
            f"input_ids hold no image placeholder (token id {token_id}), yet inputs "
            f"hold {len(sizes)} image(s): put the processor's image token into the text."
        )
    samples = rows_of(sizes, counts)
    if samples is None:
        raise ValueError(
            f"images and placeholders do not match: {len(sizes)} image(s) of {sizes} visual "
            f"tokens, but rows of input_ids hold {counts} placeholders (token id "
            f"{token_id})."
        )
    return samples


def rows_of(sizes: Sequence[int], counts: Sequence[int]) -> list[int] | None:
    """Return the row of each picture of these sizes, where rows hold so many visual tokens; None
    where pictures do not fill the rows."""
    samples, row, free = [], 0, counts[0]
    for size in sizes:
        while free == 0 and row + 1 < len(counts):
            row, free = row + 1, counts[row + 1]
        if free < size:
            return None
        samples.append(row)
        free -= size
    return samples if sum(sizes) == sum(counts) else None


def filled(tables: list[Tensor], grids: list[Grid]) -> list[Tensor]:
    """Give each newline token the mean of its row, which the model's packing left infinite: (N, c)
    per picture."""
    return [_fill_newlines(table, grid) for table, grid in zip(tables, grids, strict=True)]


def _fill_newlines(table: Tensor, grid: Grid) -> Tensor:
    parts = []
    for view, part in zip(grid.views, table.split([v.n_tokens for v in grid.views]), strict=True):
        if view.newline:
            part = part.unflatten(0, (view.height, view.row_width))  # (H, W + 1, c)
            means = part[:, :-1].sum(1, keepdim=True) / max(view.width, 1)
            part = torch.cat([part[:, :-1], means], 1).flatten(0, 1)
        parts.append(part)
    return torch.cat(parts)
