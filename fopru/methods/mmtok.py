"""MMTok: tokens that cover the question and the picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fopru.arguments import check_number
from fopru.encoding import EncodedImage
from fopru.picking import greedy_cover, products, unit
from fopru.pruner import Pruner


@dataclass(frozen=True)
class MMTok(Pruner, name="mmtok"):
    """Keep the tokens that best cover the question and the picture (Dong et al., "MMTok", ICLR
    2026, arXiv 2508.18264, section 3).

    Each word of the prompt spreads one unit of attention over the visual tokens, by a softmax over
    cosines with the features that the language model would get; so does each visual token, by
    cosines of the tower's features. What the kept tokens cover is the mean over words of the
    largest share that one of them has, plus `alpha` times the same over visual tokens. Each next
    token is the one that adds most.

    The words are those of the whole prompt, as for `cdpruner`; the authors take the question's.

    Args:
        tau_text, tau_vision: The temperatures of the two softmaxes.
        alpha: What covering the picture counts beside covering the question.

    Raises:
        ValueError: while pruning, if a prompt has no text.
    """

    tau_text: float = 0.02
    tau_vision: float = 0.2
    alpha: float = 0.5
    needs: ClassVar[frozenset[str]] = frozenset({"text", "vision"})

    def __post_init__(self):
        super().__post_init__()
        check_number("tau_text", self.tau_text, included=False)
        check_number("tau_vision", self.tau_vision, included=False)
        check_number("alpha", self.alpha)

    def select(self, image: EncodedImage, k: int) -> Tensor:
        if not len(image.text):
            raise ValueError(
                f"method {self.name!r} covers the words of the prompt, and the prompt of row "
                f"{image.sample} has none: add a question, or use 'scope'."
            )
        points, text = unit(image.vision), unit(image.text)
        words = (text @ unit(image.features).T / self.tau_text).softmax(1) / len(text)  # (T, N)
        n, scale = len(points), 1 / self.tau_vision
        sums = [(block * scale).logsumexp(1) for _, block in products(points, points)]
        log_sums = torch.cat(sums)[:, None]  # (N, 1) of each token's softmax

        def columns(places: Tensor) -> Tensor:
            shares = (points @ points[places].T * scale - log_sums).exp()  # (N, b)
            return torch.cat([words[:, places], shares * (self.alpha / n)])

        return greedy_cover(columns, k, points.new_ones(n))
