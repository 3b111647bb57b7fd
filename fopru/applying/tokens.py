"""The tokens of a prompt that each layer of a language model sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fopru.families import Grid
from fopru.families.grid import rows_of


@dataclass(frozen=True, eq=False)
class LayerTokens:
    """The tokens of the prompt that a layer sees."""

    index: Tensor
    """(B, L') int64: the column of the prompt that each token stands in."""
    dead: Tensor
    """(B, L') bool: True for padding, be it of the prompt or because rows keep unequal numbers."""
    visual: Tensor
    """(B, L') bool: True for visual tokens."""
    padded: bool
    """Whether any token is dead."""
    owner: Tensor
    """(B, L) int64: for each column of the prompt the one in whose slot its token is now, alone or
    as part of a mean, or -1 where it is gone."""

    def rows(self, index: Tensor) -> LayerTokens:
        """Return the tokens of some rows of the batch, in the order of `index`."""
        index = index.to(self.index.device)
        return replace(
            self,
            index=self.index[index],
            dead=self.dead[index],
            visual=self.visual[index],
            owner=self.owner[index],
        )


@dataclass(eq=False)
class Layers:
    """What is kept with the KV cache of a prompt of L tokens that lost some between layers."""

    length: int
    """L, the number of tokens in each row of the whole prompt."""
    pictures: list[list[Grid]]
    """The grids of each row's pictures."""
    layers: list[LayerTokens] = field(default_factory=list)
    """The tokens that each layer of the language model sees."""

    @property
    def n_rows(self) -> int:
        """B, the number of rows."""
        return len(self.layers[0].index)

    def rows(self, index: Tensor) -> Layers:
        """Return the same of some rows of the batch, in the order of `index`."""
        done: dict[int, LayerTokens] = {}
        for layer in self.layers:
            done.setdefault(id(layer), layer.rows(index))
        pictures = [self.pictures[row] for row in index.tolist()]
        return Layers(self.length, pictures, [done[id(layer)] for layer in self.layers])

    def visible(self, layer: int) -> list[Tensor]:
        """Return the visual tokens that a layer sees of each row, as indices among the row's
        own."""
        first, here = self.layers[0], self.layers[layer]
        rows = []
        for row in range(len(first.index)):
            visual = first.index[row][first.visual[row]]
            visible = here.index[row][here.visual[row] & ~here.dead[row]]
            rows.append(torch.searchsorted(visual.contiguous(), visible))
        return rows

    def owners(self, layer: int) -> list[Tensor]:
        """Return in which visual token's slot each is when a layer gets it, or -1: of each row
        (N,) int64 indices among its own."""
        first, rows = self.layers[0], []
        for visual, index, owner in zip(
            first.visual, first.index, self.layers[layer].owner, strict=True
        ):
            columns = index[visual].contiguous()
            here = owner[columns]
            rows.append(torch.searchsorted(columns, here).where(here >= 0, -1))
        return rows


def by_row(grids: Sequence[Grid], totals: Sequence[int]) -> list[list[Grid]]:
    """Say whose pictures are whose.

    Args:
        grids: The pictures of all prompts, in their order.
        totals: The number of visual tokens in each row of the batch. There may be several rows for
            each prompt, one after the other, as beams have them.

    Raises:
        ValueError: pictures and rows do not match.
    """
    sizes = [grid.n_tokens for grid in grids]
    size = sum(sizes)
    times = sum(totals) // max(1, size)
    prompts = totals[:: max(1, times)]
    found = rows_of(sizes, prompts)
    if found is None or [total for total in prompts for _ in range(times)] != list(totals):
        raise ValueError(
            f"images and placeholders do not match: {len(grids)} image(s) of {size} visual tokens, "
            f"but rows of input_ids hold {list(totals)} placeholders."
        )
    pairs = list(zip(grids, found, strict=True))
    rows = [[grid for grid, row in pairs if row == i] for i in range(len(prompts))]
    return [row for row in rows for _ in range(times)]
