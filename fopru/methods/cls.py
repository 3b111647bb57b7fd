"""The [CLS] token's attention as the score, as FasterVLM reads it, and what stands in for it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from fopru.arguments import check_choice
from fopru.encoding import EncodedImage, Tap
from fopru.families import Family
from fopru.pruner import Pruner


@dataclass(frozen=True)
class CLS(Pruner, name="cls"):
    """Keep the k tokens that the CLS token attends to most (Zhang et al., "[CLS] Attention is All
    You Need for Training-Free Visual Token Pruning", FasterVLM, arXiv 2412.01818).

    The attention is that of the block whose output the model uses, averaged over heads. Where the
    tower has no CLS token, as SigLIP and Qwen's, tokens are scored by the attention that they
    receive from all patches instead. The authors say that they do the same on such towers
    (github.com/Theia-4869/VisPruner, issue 1). So do VisionZip, VScan (arXiv 2505.22654), SCOPE
    (arXiv 2510.24214) and HoloV (arXiv 2510.02912). Where several patches make one token, the token
    gets the mean of their scores.

    Args:
        attention: "cls" reads the CLS token's attention, and "received" the attention that each
            patch receives, averaged over the patches that look. None reads "cls" where there is a
            CLS token; elsewhere it reads "received", and a warning says so once.

    Raises:
        UnsupportedModelError: if `attention` is "cls" and the tower has no CLS token.
    """

    attention: str | None = field(default=None, kw_only=True)

    needs: ClassVar[frozenset[str]] = frozenset({"cls"})

    def __post_init__(self):
        super().__post_init__()
        check_choice("attention", self.attention, (None, "cls", "received"))

    def attended(self, family: Family) -> str:
        return self.attention or ("cls" if family.n_prefix else "received")

    def taps(self, family: Family) -> set[Tap]:
        axis = self.attended(family)
        if self.attention is None and axis == "received":
            warnings.warn(
                f"{type(family.tower).__name__} has no CLS token: method {self.name!r} scores by "
                "the attention that tokens receive, as attention='received' does without this "
                "warning.",
                stacklevel=1,
            )
        return {tap._replace(axis=tap.axis.replace("cls", axis)) for tap in super().taps(family)}

    def score(self, image: EncodedImage) -> Tensor:
        return image.tap(self.attended(image.family), self.layer)
