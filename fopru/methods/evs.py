"""EVS: of a video, drop what repeats the frame before."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fopru.encoding import EncodedImage
from fopru.families import Grid
from fopru.picking import top, unit
from fopru.pruner import Pruner

MOST = 2.0
"""The largest dissimilarity that there can be: that of a token and its opposite."""


@dataclass(frozen=True)
class EVS(Pruner, name="evs"):
    """Keep the first frame of a video, and then what differs most from the frame before: Efficient
    Video Sampling (Bagrov et al., arXiv 2510.14624).

    The dissimilarity of a token is 1 minus its cosine with the token at the same place in the frame
    before. Tokens of the first frame have the largest possible value. The k most dissimilar tokens
    of the whole clip stay, so that a still scene gets few tokens and a lively one gets more. The
    paper compares pixels (the L1 norm of the difference of two patches); here the features that the
    language model would get are compared, as vLLM and SGLang do under this name. In the Qwen
    families a frame is a pair of frames, which their towers join.

    The first frame always stays: `retention` keeps floor(N * retention) of a clip's N tokens, but
    no fewer than a frame has, as those engines do. The newline token that ends a video of
    LLaVA-OneVision stays too. A picture has no frame before, and is refused.

    Raises:
        ValueError: `tokens` is smaller than the first frame, or `per` is not "clip".
    """

    _: KW_ONLY
    per: str = "clip"

    shares: ClassVar[tuple[str, ...]] = ("clip",)
    needs: ClassVar[frozenset[str]] = frozenset({"grid"})

    def budgets(self, grid: Grid) -> list[int]:
        clip, *others = super().budgets(grid)
        frame = grid.views[0].n_tokens
        if clip < frame and self.share is None:
            raise ValueError(
                f"tokens={self.tokens}: method {self.name!r} keeps the first frame of a video, "
                f"which has {frame} tokens here; give at least {frame + sum(others)}."
            )
        return [max(clip, frame), *others]

    def score(self, image: EncodedImage) -> Tensor:
        frames = unit(image.features).unflatten(0, (len(image.grid.views), -1))  # (T, n, d)
        first = frames.new_full(frames[:1, :, 0].shape, MOST)
        changed = 1 - (frames[1:] * frames[:-1]).sum(-1)  # (T - 1, n)
        return torch.cat([first, changed]).flatten()

    def select(self, image: EncodedImage, k: int) -> Tensor:
        return top(image.significance.double(), k)  # cosines: equal within an absolute difference
