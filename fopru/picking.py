"""Index arithmetic: which of N tokens are picked, and how many. No model is in sight."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-6


def top(scores: Tensor, k: int) -> Tensor:
    """Indices of the k largest scores, in their original order; ties go to the lower index."""
    return scores.sort(descending=True, stable=True).indices[:k].sort().values


def spaced(n: int, k: int) -> Tensor:
    """k of range(n), evenly: floor((j + 1/2) n / k)."""
    return ((2 * torch.arange(k) + 1) * n) // (2 * k) if k else torch.arange(0)


def lattice(height: int, width: int, k: int) -> tuple[int, int]:
    """Rows and columns of a lattice of at most k points, in about the grid's proportion."""
    high = min(height, max(1, round((k * height / width) ** 0.5)))
    high = min(high, k)
    return high, min(width, k // high)


def greedy_map(kernel: Tensor, k: int) -> Tensor:
    """Indices of the k items that greedy MAP inference picks from an (N, N) kernel, sorted."""
    kernel = kernel.double()
    gains = kernel.diagonal().clone()  # (N,) squared volume that each would add
    basis = kernel.new_zeros(k, len(kernel))
    kept: list[int] = []
    for i in range(k):
        best = int(gains.argmax())
        kept.append(best)
        if gains[best] > EPSILON:
            row = kernel[best] - basis[:i, best] @ basis[:i]  # (N,)
            basis[i] = row / gains[best].sqrt()
            gains = gains - basis[i] ** 2
        gains[kept] = -torch.inf
    return torch.tensor(sorted(kept), device=kernel.device)


def floor_share(n: int, share: float) -> int:
    """floor(n * share) of the exact value, at least 1: 0.29 of 100 is 29."""
    return max(1, math.floor(round(n * share, 9)))


def in_proportion(k: int, sizes: list[int]) -> list[int]:
    """Split k by largest remainder, at least 1 and at most all of each part."""
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


def masses(features: Tensor, kept: Tensor) -> Tensor:
    """How many tokens each kept one stands for.

    Args:
        features: (N, d) of all visual tokens of a picture, as the LLM would get them.
        kept: (k,) indices.

    Returns:
        (k,) int64 that sum to N: tokens whose most similar kept token (cosine) it is, ties to the
        lower index; a kept token is its own.
    """
    kept = kept.to(features.device)
    unit = F.normalize(features.float(), dim=1)
    owner = (unit @ unit[kept].T).argmax(1)  # (N, k) -> (N,)
    owner[kept] = torch.arange(len(kept), device=owner.device)
    return owner.bincount(minlength=len(kept))
