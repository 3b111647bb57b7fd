"""FastV: what the question does not look at leaves after the second layer."""

from __future__ import annotations

from dataclasses import dataclass

from fopru.arguments import check_integer
from fopru.in_llm import InLLMPruner


@dataclass(frozen=True)
class FastV(InLLMPruner, name="fastv"):
    """Drop visual tokens inside the language model (Chen et al., "An Image is Worth 1/2 Tokens
    After Layer 2", ECCV 2024, arXiv 2403.06764).

    From layer `k_layer` on the language model sees round(N * retention) visual tokens: those that
    the last prompt token attends to most in the layer before, averaged over heads. They keep their
    position ids.

    Args:
        k_layer: The 0-based layer that tokens are dropped before, the paper's K; at least 1.
    """

    k_layer: int = 2

    def __post_init__(self):
        super().__post_init__()
        check_integer("k_layer", self.k_layer, minimum=1)

    def stages(self, n_layers: int) -> dict[int, float]:
        if self.k_layer >= n_layers:
            raise ValueError(
                f"k_layer={self.k_layer}: must be below the language model's {n_layers} layers."
            )
        return {self.k_layer: self.share}

    def count(self, n: int, share: float) -> int:
        return max(1, round(n * share))
