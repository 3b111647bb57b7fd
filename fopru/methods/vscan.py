"""VScan: half for every window of the picture, half for the whole, and the rest folded in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fopru.arguments import check_integer
from fopru.encoding import EncodedImage, Tap
from fopru.families import Family, UnsupportedModelError, View
from fopru.methods.cls import CLS
from fopru.picking import owners, ranked, remaining, top
from fopru.pruned import Merged


@dataclass(frozen=True)
class VScan(CLS, name="vscan"):
    """Keep local and global tokens, and fold the others in (Zhang et al., "VScan", TMLR 2026, arXiv
    2505.22654, section 4.1).

    The floor(k / 2) local tokens are those that CLS attends to most in a shallow block, at most the
    same number from each window of the grid. The global ones are those of the rest that it attends
    to most in the block whose output the model uses. Each other token goes to the kept one that is
    most like it (cosine of the features that the language model would get), and each kept one
    becomes the mean of itself and those. Where the quota of the windows does not divide, the rule
    is that of the authors' code for Qwen2.5-VL, which keeps exactly k. Views with newline tokens
    are refused.

    This is the paper's first stage only. The second one, half way through the language model, keeps
    a third of these tokens by the attention of the last prompt token; it is not here. A published
    budget is the mean over layers: "64" is 96 tokens, and 32 from layer 16 of 32 on.

    Where the tower has no CLS token, `attention` decides as in `fopru.CLS`, as the authors do for
    Qwen2.5-VL.

    Args:
        window: Tokens along the side of a window. None is 6, or the shorter side of a grid that is
            smaller than that. A ragged edge belongs to the last window.
        shallow_layer: The 0-based block that local tokens are taken from, negative from the end.
            None is the block at a quarter of the depth: 5 of CLIP-L's 24, as the authors choose.

    Raises:
        ValueError: while pruning, if the window is larger than the grid.
    """

    window: int | None = None
    shallow_layer: int | None = None
    needs: ClassVar[frozenset[str]] = frozenset({"cls"})

    def __post_init__(self):
        super().__post_init__()
        if self.window is not None:
            check_integer("window", self.window, minimum=1)
        if self.shallow_layer is not None:
            check_integer("shallow_layer", self.shallow_layer)

    def _shallow_layer(self, family: Family) -> int:
        return family.nearest_block(1 / 4) if self.shallow_layer is None else self.shallow_layer

    def taps(self, family: Family) -> set[Tap]:
        layer = self._shallow_layer(family)
        return {*super().taps(family), Tap(family.block(layer), self.attended(family))}

    def merge(self, image: EncodedImage, k: int) -> Merged:
        (view,) = image.grid.views
        if view.newline:
            raise UnsupportedModelError(
                f"method {self.name!r} cuts the grid into windows, and this family ends each row "
                "of a picture with a newline token: it is undefined here."
            )
        n = view.n_tokens
        family = image.family
        shallow = image.tap(self.attended(family), self._shallow_layer(family)).cpu()
        local = self._local(shallow, view, k // 2)
        rest = remaining(local, n)
        best = rest[top(image.significance[rest], k - len(local))]
        kept = torch.cat([local, best]).sort().values
        return Merged.means(kept, image.features, owners(image.features, kept))

    def _local(self, scores: Tensor, view: View, count: int) -> Tensor:
        """Places of `count` tokens of largest score, so many from each window."""
        side = min(6, view.height, view.width) if self.window is None else self.window
        high, wide = view.height // side, view.width // side
        if not high * wide:
            raise ValueError(
                f"window={side}: the grid has {view.height} x {view.width} visual tokens, and a "
                "window is no larger than that."
            )
        rows = (torch.arange(view.height) // side).clamp(max=high - 1)
        columns = (torch.arange(view.width) // side).clamp(max=wide - 1)
        window = (rows[:, None] * wide + columns).flatten()  # (N,)
        limit, order = -(-count // (high * wide)), ranked(scores)
        # stable: of each window its tokens by score, then how many of it come before each
        by_window = order[window[order].sort(stable=True).indices]
        sizes = window.bincount()
        turn = torch.empty_like(order)
        turn[by_window] = torch.arange(len(order)) - (sizes.cumsum(0) - sizes)[window[by_window]]
        return order[turn[order] < limit][:count]
