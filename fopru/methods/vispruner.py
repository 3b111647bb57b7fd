"""VisPruner: half for attention, half for what is unlike the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fopru.arguments import check_share
from fopru.encoding import EncodedImage
from fopru.methods.cls import CLS
from fopru.picking import nearest, products, ranked, unit

STEP = 8
"""Tokens removed at a time while the diverse half is sought."""

LISTED = 32
"""Neighbours of each token that are remembered from round to round."""


@dataclass(frozen=True)
class VisPruner(CLS, name="vispruner"):
    """Keep important and diverse tokens (Zhang et al., "Beyond Text-Visual Attention", ICCV 2025,
    arXiv 2412.01818, section 4).

    The floor(k * ratio) tokens that CLS attends to most are important. Of the rest, in the order of
    that attention, near duplicates are removed 8 at a time until k tokens stay in all. In each
    round the tokens that are left are dealt out in turns into two halves. Those of the first half
    are removed that are most like a token of the second half (cosine of the tower's features). With
    an odd number of tokens the first half has one more; the authors' code does not run then.

    Where the tower has no CLS token, `attention` decides as in `fopru.CLS`. Where several patches
    make one token, cosines are those of the patches' mean; the authors compare the merged tokens
    (github.com/Theia-4869/VisPruner, issue 1).

    Args:
        ratio: The share of k that is kept by attention, in [0, 1].
    """

    ratio: float = 0.5
    needs: ClassVar[frozenset[str]] = frozenset({"cls", "vision"})

    def __post_init__(self):
        super().__post_init__()
        check_share("ratio", self.ratio)

    def select(self, image: EncodedImage, k: int) -> Tensor:
        order = ranked(image.significance)
        important = int(k * self.ratio)
        rest = order[important:]
        points = unit(image.vision)
        diverse = rest[_thinned(points[rest.to(points.device)], k - important).cpu()]
        return torch.cat([order[:important], diverse]).sort().values


def _thinned(points: Tensor, k: int) -> Tensor:
    """Which k of n tokens stay when near duplicates go, round after round.

    The cosines of all pairs are found a block at a time, and only each token's `LISTED` nearest
    are remembered. Who has none of these in the other half is compared with all of it, and the
    lists are made anew when half of the tokens are gone.
    """
    n = len(points)
    rest = torch.arange(n, device=points.device)
    cosines, places, listed = points.new_empty(n, 0), rest.new_empty(n, 0), n + 1
    while len(rest) > k:
        if len(rest) == 1:
            return rest[:0]
        if 2 * len(rest) <= listed or listed > n:
            listed = len(rest)
            cosines, places = _neighbours(points, rest)
        a, b = rest[0::2], rest[1::2]
        other = torch.zeros(n, dtype=torch.bool, device=rest.device)
        other[b] = True
        hits = other[places[a]]  # (|a|, m)
        alike = cosines[a].gather(1, hits.byte().argmax(1, keepdim=True)).squeeze(1)  # (|a|,)
        missed = ~hits.any(1)
        if missed.any():
            alike[missed] = nearest(points[a[missed]], points[b])[0]
        remove = min(STEP, len(rest) - k, len(a))
        rest = torch.cat([a[ranked(alike)[remove:]], b])
    return rest


def _neighbours(points: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """For each token of the rest its nearest ones there, best first: (n, m) cosines and places."""
    m = min(LISTED, len(rest))
    cosines, places = points.new_empty(len(points), m), rest.new_empty(len(points), m)
    for start, block in products(points[rest], points[rest]):
        found = block.topk(m, dim=1)
        rows = rest[start : start + len(block)]
        cosines[rows], places[rows] = found.values, rest[found.indices]
    return cosines, places
