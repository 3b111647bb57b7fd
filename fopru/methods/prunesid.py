"""PruneSID: groups by principal directions, and near duplicates last in each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fopru.encoding import VISION, EncodedImage, Tap
from fopru.families import Family
from fopru.picking import ABSOLUTE, ranked, unit
from fopru.pruner import Pruner


@dataclass(frozen=True)
class PruneSID(Pruner, name="prunesid"):
    """Keep tokens of every principal direction, duplicates last (Fang et al., "PruneSID", ICLR
    2026, arXiv 2603.09480).

    The max(1, floor(k / 4)) first right singular vectors of the tower's features, put through a
    sigmoid and centred token by token, make as many groups: a token belongs to the one that it
    lies along most. In each group, from the largest CLS attention on, a token survives that is not
    too much like one that survived already; the others come last. Each group with members gives
    one token, and the rest is shared in proportion to the survivors.

    Where the tower has no CLS token, a token's loading on its group's direction stands for its
    attention, as in the paper.

    The singular vectors are exact, where the authors draw random ones. They count the CLS token
    among the k.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"cls", "vision"})

    def taps(self, family: Family) -> set[Tap]:
        taps = super().taps(family)
        return taps if family.n_prefix else taps & {VISION}

    def score(self, image: EncodedImage) -> Tensor | None:
        return image.tap("cls", self.layer) if image.family.n_prefix else None

    def select(self, image: EncodedImage, k: int) -> Tensor:
        n, count = len(image.features), max(1, k // 4)
        soft = image.vision.cpu().double().sigmoid()  # (N, d_v)
        directions = torch.linalg.svd((soft - soft.mean(1, keepdim=True)).T, full_matrices=False).Vh
        loads, group = directions[:count].abs().max(0)  # (N,) each
        scores = loads if image.significance is None else image.significance
        points = unit(image.vision).cpu()
        pairs = points.sum(0).square().sum() - points.square().sum()
        limit = k / 32 * pairs / (n * (n - 1))
        orders, survivors = [], []
        for g in range(count):
            members = (group == g).nonzero().flatten()
            order = members[ranked(scores[members])]
            stays = _unlike(points[order], float(limit))
            orders.append(torch.cat([order[stays], order[~stays]]))
            survivors.append(int(stays.sum()))
        quotas = _quotas([len(order) for order in orders], survivors, k)
        taken = [order[:quota] for order, quota in zip(orders, quotas, strict=True)]
        return torch.cat(taken).sort().values


def _unlike(points: Tensor, limit: float) -> Tensor:
    """(n,) bool: which of the tokens, in their order, are not too much like an earlier one."""
    stays = torch.zeros(len(points), dtype=torch.bool)
    there, count = torch.empty_like(points), 0  # the survivors so far
    for i, point in enumerate(points):
        if not (there[:count] @ point > limit + ABSOLUTE).any():
            stays[i], there[count] = True, point
            count += 1
    return stays


def _quotas(sizes: list[int], survivors: list[int], k: int) -> list[int]:
    """How many tokens each group gives, k in all."""
    caps = [min(5 * math.ceil(k / 64), size, m) for size, m in zip(sizes, survivors, strict=True)]
    while sum(caps) < k:
        caps = [min(cap + 1, size) for cap, size in zip(caps, sizes, strict=True)]
    quotas, done, seen = [], 0, 0
    extra, total = max(0, k - sum(size > 0 for size in sizes)), sum(survivors)
    for size, m, cap in zip(sizes, survivors, caps, strict=True):
        seen += m
        until = round(extra * seen / total)
        quotas.append(min(min(1, size) + until - done, cap))
        done = until
    for g in sorted(range(len(sizes)), key=lambda g: -survivors[g]):
        quotas[g] += min(caps[g] - quotas[g], k - sum(quotas))
    return quotas
