"""Index arithmetic: which of N tokens are picked, and how many. No model is in sight.

Ties. Arithmetic in floating point gives two values that are equal by the formula (those of a
token and its duplicate, say) different last bits, and other ones with another number of threads.
Whatever picks by size here therefore takes values as equal that differ by no more than rounding,
and gives ties to the lower index:

- scores that a model computed: equal within 2^-18 of their size, 32 units of float32's last place;
- cosines and volumes, which lie in [0, 1] or near it and are computed here from features, in
  float64 (`unit`): equal within 2^-18, since the features come from the model in float32 at best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

RELATIVE = ABSOLUTE = 2**-18
"""How far float32 scores (by their size) and float64 values lie apart and still count as equal."""

LEAST_VOLUME = 1e-6
"""The least that a token adds to the squared volume of the kept ones, if its direction counts."""

BLOCK_ELEMENTS = 2**22
"""How many products of two tokens are made at a time: 32 MiB of float64."""

LIKELY = 64
"""The number of tokens whose products with all others are made ahead, if not all can be held."""

HELD_ELEMENTS = 2**24
"""How many products of two tokens may be held: 128 MiB of float64, all pairs of 4,096 tokens."""


# How many


def floor_share(n: int, share: float) -> int:
    """Return the floor of the exact product n * share, but at least 1: 0.29 of 100 is 29."""
    return max(1, math.floor(round(n * share, 9)))


def in_proportion(k: int, sizes: list[int]) -> list[int]:
    """Split k by largest remainder among parts of these sizes: at least 1 and at most all of each.

    Args:
        k: From the number of parts to the sum of their sizes.
    """
    total = sum(sizes)
    parts = [max(1, k * size // total) for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (-(k * sizes[i] % total), i))
    while sum(parts) < k:
        for i in by_remainder:
            if sum(parts) < k and parts[i] < sizes[i]:
                parts[i] += 1
    while sum(parts) > k:
        parts[parts.index(max(parts))] -= 1
    return parts


# Places that are evenly spread


def spaced(n: int, k: int) -> Tensor:
    """Return k places that are evenly spaced in range(n), (k,) int64: floor((j + 1/2) n / k)."""
    return ((2 * torch.arange(k) + 1) * n) // (2 * k) if k else torch.arange(0)


def lattice(height: int, width: int, k: int) -> tuple[int, int]:
    """Return rows and columns of a lattice of at most k points, in about the grid's proportion."""
    high = min(height, max(1, round((k * height / width) ** 0.5)))
    high = min(high, k)
    return high, min(width, k // high)


def remaining(chosen: Tensor, n: int) -> Tensor:
    """Return the places in range(n) that are not among the chosen, sorted, on the device of the
    chosen."""
    free = torch.ones(n, dtype=torch.bool, device=chosen.device)
    free[chosen] = False
    return free.nonzero().flatten()


# The largest of some values


def top(values: Tensor, k: int) -> Tensor:
    """Return the places of the k largest values in their order; ties go to the lower index.

    Args:
        values: (N,) float32 or float64; infinity always comes first.
        k: From 1 to N.

    Returns:
        (k,) int64 on the CPU, sorted.
    """
    values = values.cpu()
    border = values.topk(k, sorted=False).values.min().item()
    slack = 0 if math.isinf(border) else _slack(values.dtype, border)
    chosen = (values >= border - slack).nonzero().flatten()
    if len(chosen) > k:  # more are equal to the k-th than there is room for
        above = values[chosen] > border + slack
        chosen = chosen[above | ((~above).cumsum(0) <= k - above.sum())]
    return chosen


def _slack(dtype: torch.dtype, size: Any) -> Any:
    """Return how far values may lie from one of this size and still count as equal to it."""
    return ABSOLUTE if dtype == torch.float64 else abs(size) * RELATIVE


def ranked(values: Tensor) -> Tensor:
    """Return the places of all values from the largest to the smallest; ties have the lower index
    first.

    Args:
        values: (N,) float32 or float64, finite.

    Returns:
        (N,) int64. A value counts as equal to the next larger one if rounding parts the two.
    """
    values, order = values.sort(descending=True, stable=True)
    steps = values[:-1] - values[1:] > _slack(values.dtype, values[:-1])
    level = F.pad(steps.cumsum(0), (1, 0))[: len(values)]
    return (level * len(values) + order).sort().values % max(1, len(values))


def first(values: Tensor) -> Tensor:
    """Return the place of the largest float64 value along the last dimension: (..., N) -> (...).

    Ties go to the lower index.
    """
    return (values >= values.amax(-1, keepdim=True) - ABSOLUTE).byte().argmax(-1)


# Tokens that are like each other


def unit(features: Tensor) -> Tensor:
    """Scale features (N, d) to length 1, as `wide` returns them; a row of zeros stays as it is."""
    return F.normalize(wide(features), dim=1)


def wide(features: Tensor) -> Tensor:
    """Return features (N, d) in float64.

    They stay on their device, if that is known to have float64; else they come to the CPU, for
    Apple's GPUs have none.

    Raises:
        ValueError: some are NaN or infinite, which are like nothing and unlike nothing.
    """
    if not (finite := features.isfinite().all(1)).all():
        raise ValueError(
            f"the features of {int((~finite).sum())} of {len(finite)} tokens hold NaN or infinity, "
            "so that tokens cannot be compared: does the model run in a dtype that overflows?"
        )
    if features.device.type not in ("cpu", "cuda"):
        features = features.cpu()
    return features.double()


def products(rows: Tensor, columns: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Make rows @ columns.T, (n, d) and (m, d) -> (n, m), some rows at a time, never all at once.

    Yields:
        The place of the first row, and (b, m).
    """
    size = max(1, BLOCK_ELEMENTS // max(1, len(columns)))
    for start in range(0, len(rows), size):
        yield start, rows[start : start + size] @ columns.T


def nearest(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Find for each row the column that is most like it.

    Args:
        rows, columns: (n, d) and (m, d), each a `unit`.

    Returns:
        (n,) cosines, and (n,) int64 places of the columns, ties to the lower index.
    """
    found = [(block.amax(1), first(block)) for _, block in products(rows, columns)]
    cosines, places = zip(*found, strict=True)
    return torch.cat(cosines), torch.cat(places)


def owners(features: Tensor, kept: Tensor) -> Tensor:
    """Find for each token the kept token that is most like it by cosine; a kept token is its own.

    Args:
        features: (N, d) of all visual tokens of a picture, as the LLM would get them.
        kept: (k,) int64: the places of the kept tokens.

    Returns:
        (N,) int64: the place of each token's owner among the kept ones; ties go to the lower place.
        A kept token stands for as many tokens as its place occurs times.
    """
    places = torch.arange(len(kept), device=kept.device)
    if len(kept) == len(features):
        return places
    points = unit(features)
    kept, places = kept.to(points.device), places.to(points.device)
    owner = nearest(points, points[kept])[1]
    owner[kept] = places
    return owner


def cosines_of(points: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function that gives the products of one token with all, (N,), for greedy picking.

    It takes the token's place, (1,), and the (N,) values by which tokens are picked. The products
    of all pairs are made once if there are at most 4,096 tokens. Else those of 64 tokens are made
    at a time, the ones that are likely to be picked next, and nothing of size N x N is held. All is
    given on the CPU, where greedy picking goes on: its step is a few operations on N numbers, each
    of which takes a GPU longer to start than to do (0.1 ms a step on an H200).
    """
    if len(points) ** 2 <= HELD_ELEMENTS:
        table = (points @ points.T).cpu()
        return lambda place, values: table[place][0]
    held: dict[int, Tensor] = {}

    def row(place: Tensor, values: Tensor) -> Tensor:
        if (one := int(place)) not in held:
            likely = values.topk(min(LIKELY, len(values))).indices.tolist()
            held.clear()
            rows = (points[[one, *likely]] @ points.T).cpu()
            held.update(zip([one, *likely], rows, strict=True))
        return held[one].clone()

    return row


def loneliest(points: Tensor) -> Tensor:
    """Return the place of the token whose nearest other one is farthest away, (1,); ties go to the
    lower index.

    Args:
        points: (N, d), a `unit`.
    """
    alike = []
    for start, block in products(points, points):
        rows = torch.arange(len(block), device=block.device)
        block[rows, start + rows] = -torch.inf  # no token is its own neighbour
        alike.append(block.amax(1))
    return first(-torch.cat(alike)[None])


def spread(
    points: Tensor, taken: Tensor, k: int, worth: Tensor | None = None, unlike: float = 1.0
) -> Tensor:
    """Add tokens to those taken until there are k: each time the one that is least like any of
    them.

    Args:
        points: (N, d), a `unit`.
        taken: (t,) distinct places, from 1 to k of them.
        worth: (N,) float64. Where it is given, each token added is the one whose worth, less
            `unlike` times its largest cosine to those taken, is largest.

    Returns:
        (k,) int64 on the CPU, sorted. Ties go to the lower index.
    """
    taken, worth = taken.cpu(), None if worth is None else worth.cpu()
    row_of, waiting, kept = cosines_of(points), list(taken[:, None]), []
    alike = torch.full((len(points),), -torch.inf, dtype=points.dtype)
    alike[taken] = torch.inf  # (N,) largest cosine to those taken
    for _ in range(k):
        values = -alike if worth is None else worth - unlike * alike  # (N,)
        kept.append(waiting.pop(0) if waiting else first(values[None]))
        alike = alike.maximum(row_of(kept[-1], values))
        alike[kept[-1]] = torch.inf
    return torch.cat(kept).sort().values


def greedy_map(points: Tensor, k: int, weights: Tensor | None = None) -> Tensor:
    """Pick k tokens, each the one that adds most to the determinant of the kept ones' kernel.

    The kernel of tokens i and j is the product of their weights and their cosine. Its Cholesky
    factor grows by a row with each token: k N numbers, and no kernel. Where no token adds more
    than 1e-6, the largest addition still goes first, and takes nothing from the others.

    Args:
        points: (N, d), a `unit`.
        weights: (N,) float64 on the same device; all are 1 where it is left out.

    Returns:
        (k,) int64 on the CPU, sorted. Ties go to the lower index.
    """
    gains = points.square().sum(1).round()  # (N,) squared volume that each adds; now 1, or 0
    if weights is not None:
        points, gains = points * weights[:, None], gains * weights**2
    gains, row_of, kept = gains.cpu(), cosines_of(points), []
    factor = gains.new_zeros(k, len(gains))
    for i in range(k):
        best = first(gains[None])  # (1,)
        row = row_of(best, gains) - factor[:i, best].T @ factor[:i]  # (1, N)
        factor[i] = (row / gains[best].sqrt()).where(gains[best] > LEAST_VOLUME, 0)
        gains = gains - factor[i] ** 2
        gains[best] = -torch.inf
        kept.append(best)
    return torch.cat(kept).sort().values


def greedy_cover(columns: Callable[[Tensor], Tensor], k: int, weights: Tensor) -> Tensor:
    """Pick k tokens, each the one that adds most to what those picked cover.

    A token covers so much of each thing that is to be covered, and several of them as much as the
    best of them. What a token adds is summed over the things and counts by the token's weight.
    Gains only fall as tokens are picked, so that most are not computed again (lazy greedy).

    Args:
        columns: From (b,) places to (things, b) float64, how much each of these tokens covers; not
            negative.
        k: From 1 to N.
        weights: (N,) float64 on the device of the columns, not negative.

    Returns:
        (k,) int64 on the CPU, sorted. Gains that differ by rounding only count as equal, and ties
        go to the lower index.
    """
    n, places = len(weights), torch.arange(len(weights), device=weights.device)
    if len(columns(places[:1])) * n <= HELD_ELEMENTS:
        table = torch.cat([columns(part) for part in places.split(LIKELY)], 1)  # (things, n)
        columns = partial(table.index_select, 1)
    bounds = torch.cat([columns(part).sum(0) for part in places.split(LIKELY)]) * weights  # (N,)
    covered, kept = weights.new_zeros(()), []
    while True:
        fresh = bounds <= 0  # who adds nothing will never do
        while True:
            best = bounds.where(fresh, -torch.inf).max()
            stale = ~fresh & (bounds >= best - best.abs() * RELATIVE)
            if not stale.any():
                break
            likely = bounds.where(stale, -torch.inf).topk(min(LIKELY, n)).indices
            likely = likely[stale[likely]]
            more = columns(likely) - covered  # (things, b)
            bounds[likely] = more.where(more > covered * RELATIVE, 0).sum(0) * weights[likely]
            fresh[likely] = True
        best = bounds.max()
        kept.append((bounds >= best - best.abs() * RELATIVE).byte().argmax(keepdim=True))
        if len(kept) == k:
            return torch.cat(kept).sort().values.cpu()
        covered = columns(kept[-1]).maximum(covered)  # (things, 1)
        bounds[kept[-1]] = -torch.inf
