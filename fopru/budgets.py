"""How many visual tokens the tables of papers keep, and of how many."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Budgets:
    """The budgets by which papers compare methods on one model."""

    model: str
    """The name of the model, as papers have it."""
    whole: int
    """Its visual tokens of the picture that papers count by."""
    tokens: tuple[int, ...]
    """How many of them are kept: what `fopru.Pruner(tokens=...)` takes."""

    @property
    def retentions(self) -> tuple[float, ...]:
        """The same budgets as shares, for pictures that become more tokens or fewer.

        Authors prune each tile by itself, to the same number: "640" of LLaVA-NeXT is 128 of each of
        5 tiles, and 384 of a picture that becomes 3 of them (github.com/Tencent/SelfEvolvingAgent,
        issue 6, and github.com/JIA-Lab-research/VisionZip, issue 17).
        """
        return tuple(kept / self.whole for kept in self.tokens)

    def __str__(self) -> str:
        return f"{', '.join(map(str, self.tokens))} of {self.model}'s {self.whole}"


PAPERS = {
    "llava": Budgets("LLaVA-1.5", 576, (192, 128, 64)),
    "llava_next": Budgets("LLaVA-NeXT", 2880, (640, 320, 160)),
}
"""Model type -> the budgets of papers. The 2,880 are five tiles of 576 of a picture of 672 x 672
pixels, without the newline tokens, which count here. On models of other types papers keep shares of
what a picture becomes, or make all pictures one size."""
