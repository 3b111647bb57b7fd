"""DivPrune: keep the tokens that are least alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fopru.encoding import EncodedImage
from fopru.pruner import Pruner


@dataclass(frozen=True)
class DivPrune(Pruner, name="divprune"):
    """Max-min diversity (Alvar et al., "DivPrune", CVPR 2025, arXiv 2503.02175, section 3).

    Distance is 1 - cosine of the features that the LLM would get. The first token is the one whose
    nearest neighbour is farthest; then, again and again, the one farthest from all that are kept.
    """

    def select(self, image: EncodedImage, k: int) -> Tensor:
        unit = torch.nn.functional.normalize(image.features.float(), dim=1)  # (N, d)
        distance = 1 - unit @ unit.T  # (N, N)
        if k == len(unit):
            return torch.arange(k, device=unit.device)
        nearest = distance.clone().fill_diagonal_(torch.inf).amin(1)
        kept = [int(nearest.argmax())]
        least = distance[kept[0]].clone()  # (N,) to the nearest of those kept
        while len(kept) < k:
            least[kept[-1]] = -torch.inf
            kept.append(int(least.argmax()))
            least = torch.minimum(least, distance[kept[-1]])
        return torch.tensor(sorted(kept), device=unit.device)
