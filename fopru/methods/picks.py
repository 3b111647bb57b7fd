"""Selectors: which k tokens stay, given their scores. `fopru.Compose` puts one into a method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fopru.arguments import check_share
from fopru.encoding import EncodedImage
from fopru.picking import RELATIVE, floor_share, lattice, loneliest, ranked, spread, top, unit
from fopru.pruner import PER


@dataclass(frozen=True)
class Pick:
    """A selector: it says which k tokens of a view stay. A subclass overrides `select`."""

    needs: ClassVar[frozenset[str]] = frozenset()
    """What it reads beside tokens and scores, as `fopru.Pruner.needs`."""

    scored: ClassVar[bool] = True
    """Whether it reads scores."""

    shares: ClassVar[tuple[str, ...]] = PER
    """The values of `per` with which it is defined."""

    def select(self, image: EncodedImage, k: int) -> Tensor:
        """Return the places of the k tokens to keep, (k,) int64, sorted and distinct.

        Args:
            image: One view with N tokens; `image.significance` are their scores, (N,) float32.
            k: From 1 to N.
        """
        raise NotImplementedError(f"{type(self).__name__} must override `select`.")


@dataclass(frozen=True)
class Top(Pick):
    """Keep the tokens with the largest scores."""

    def select(self, image: EncodedImage, k: int) -> Tensor:
        return top(image.significance, k)


@dataclass(frozen=True)
class Cells(Pick):
    """Keep the token with the largest score in each of some equal cells of the grid, and the best
    of the rest.

    A budget of k has floor(k * share) cells, at least 1, or as many of them as make a lattice of
    kh x kw with kh / kw near H / W. The token in row r and column c is in cell (floor(r kh / H),
    floor(c kw / W)); a newline token is the last one of its row.

    Args:
        share: The share of k that goes to cells, in (0, 1].
    """

    share: float = 1.0
    needs: ClassVar[frozenset[str]] = frozenset({"grid"})
    shares: ClassVar[tuple[str, ...]] = ("view",)

    def __post_init__(self):
        check_share("share", self.share, "(0, 1]")

    def select(self, image: EncodedImage, k: int) -> Tensor:
        (view,) = image.grid.views
        high, wide = lattice(view.height, view.row_width, floor_share(k, self.share))
        rows, columns = torch.arange(view.height), torch.arange(view.row_width)
        down, across = rows * high // view.height, columns * wide // view.row_width
        cell = (down[:, None] * wide + across).flatten()  # (N,)
        rank = ranked(image.significance).argsort()  # (N,) 0 is the best
        best = torch.full((high * wide,), len(rank)).scatter_reduce(0, cell, rank, "amin")
        return top(image.significance.masked_fill(rank == best[cell], torch.inf), k)


@dataclass(frozen=True)
class MaxMin(Pick):
    """Keep tokens that are far from each other, as `fopru.DivPrune` does: each is the one whose
    largest cosine to those kept is smallest. Scores are not used."""

    scored: ClassVar[bool] = False

    def select(self, image: EncodedImage, k: int) -> Tensor:
        points = unit(image.features)  # (N, d)
        return spread(points, loneliest(points), k)


@dataclass(frozen=True)
class Halves(Pick):
    """Keep the tokens with the largest scores, and beside them those that are farthest from all
    that is kept.

    The floor(k * share) tokens with the largest scores come first, at least 1. Each next one is the
    one whose largest cosine to those kept is smallest, of the features that the language model
    would get.

    Args:
        share: The share of k that goes by score, in (0, 1].
    """

    share: float = 0.5

    def __post_init__(self):
        check_share("share", self.share, "(0, 1]")

    def select(self, image: EncodedImage, k: int) -> Tensor:
        best = top(image.significance, floor_share(k, self.share))
        if len(best) == k:
            return best
        return spread(unit(image.features), best, k)


@dataclass(frozen=True)
class MMR(Pick):
    """Keep tokens of maximal marginal relevance (Carbonell and Goldstein, "The Use of MMR,
    Diversity-Based Reranking", SIGIR 1998).

    The token with the largest score comes first. Each next one is the one for which balance * score
    - (1 - balance) * its largest cosine to those kept is largest. Scores are scaled to [0, 1] over
    the view, the least to 0 and the largest to 1; where they are all equal, they are all 0. Cosines
    are those of the features that the language model would get.

    Args:
        balance: What a score counts against likeness, in [0, 1]: 1 is `Top`.
    """

    balance: float = 0.5

    def __post_init__(self):
        check_share("balance", self.balance)

    def select(self, image: EncodedImage, k: int) -> Tensor:
        if self.balance == 1:
            return top(image.significance, k)
        best = top(image.significance, 1)
        scores = image.significance.double()  # (N,)
        low, high = scores.aminmax()
        width = (high - low).where(high - low > RELATIVE * high.abs().maximum(low.abs()), torch.inf)
        worth = self.balance * ((scores - low) / width)
        return spread(unit(image.features), best, k, worth, 1 - self.balance)
