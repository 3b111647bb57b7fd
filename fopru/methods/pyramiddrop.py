"""PyramidDrop: fewer visual tokens after each quarter of the language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fopru.in_llm import InLLMPruner


@dataclass(frozen=True)
class PyramidDrop(InLLMPruner, name="pyramiddrop"):
    """Drop visual tokens in three steps inside the language model (Xing et al., "PyramidDrop",
    CVPR 2025, arXiv 2410.17247).

    Tokens are dropped before layers L/4, L/2 and 3L/4 of L (8, 16 and 24 of 32). Each step keeps
    the same share of them, so that the last quarter of the layers sees `retention` of all; 0.125
    gives the authors' 1/2, 1/4 and 1/8. The tokens that stay are those that the last prompt token
    attends to most, by that layer's own projections of its input. Tokens are numbered anew after
    each step, as in the authors' code, unless positions="preserve".
    """

    reindexes: ClassVar[bool] = True
    before: ClassVar[bool] = False

    def stages(self, n_layers: int) -> dict[int, float]:
        if n_layers < 4:
            raise ValueError(f"pyramiddrop needs at least 4 layers; this model has {n_layers}.")
        share = self.share ** (1 / 3)
        return {n_layers * i // 4: share**i for i in (1, 2, 3)}
