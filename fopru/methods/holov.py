"""HoloV: a quota for each part of the picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fopru.arguments import check_integer
from fopru.encoding import EncodedImage
from fopru.methods.cls import CLS
from fopru.picking import RELATIVE, ranked, top


@dataclass(frozen=True)
class HoloV(CLS, name="holov"):
    """Give every part of the picture a quota (Zou et al., "Don't Just Chase Highlighted Tokens",
    NeurIPS 2025, arXiv 2510.02912, section 4.1).

    The tokens are cut into `crops` runs of nearly equal length in reading order. A run's quota is
    in proportion to the mean CLS attention of its tokens, and no larger than the run. What is left
    over goes to the run with the largest product of that mean and its free places. Each run keeps
    the tokens that CLS attends to most.

    The paper adds the variance of a token's similarities to its score. In the authors' code it is
    scaled to the run's mean attention and cancels from the quotas, and tokens are kept by attention
    alone: it has no effect, and is left out here.

    Where the tower has no CLS token, `attention` decides as in `fopru.CLS`.

    Args:
        crops: The number of runs. In a view with fewer tokens than that, each token is a run.
    """

    crops: int = 16
    needs: ClassVar[frozenset[str]] = frozenset({"cls"})

    def __post_init__(self):
        super().__post_init__()
        check_integer("crops", self.crops, minimum=1)

    def select(self, image: EncodedImage, k: int) -> Tensor:
        runs = image.significance.tensor_split(min(self.crops, len(image.significance)))
        means = torch.stack([run.double().mean() for run in runs])
        quotas = _quotas(means / means.sum(), torch.tensor([len(run) for run in runs]), k)
        kept, start = [], 0
        for run, quota in zip(runs, quotas.tolist(), strict=True):
            if quota:
                kept.append(start + top(run, quota))
            start += len(run)
        return torch.cat(kept)


def _quotas(shares: Tensor, sizes: Tensor, k: int) -> Tensor:
    """Tokens to keep of each run: k of them in proportion to `shares`, at most `sizes`."""
    quotas = (k * shares * (1 + RELATIVE)).floor().long()
    shares = shares.float()  # whose rounding is that of scores
    quotas[ranked(shares)[: k - quotas.sum()]] += 1
    quotas = quotas.minimum(sizes)
    for _ in range(k - int(quotas.sum())):
        room = sizes - quotas
        quotas[ranked((shares * room).where(room > 0, -1.0))[0]] += 1
    return quotas
