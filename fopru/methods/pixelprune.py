"""PixelPrune: patches that are what their neighbours predict never enter the vision tower."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fopru.arguments import check_number
from fopru.families import Grid
from fopru.pruner import Pruner


@dataclass(frozen=True)
class PixelPrune(Pruner, name="pixelprune"):
    """Leave out before the vision tower what its neighbours predict (PixelPrune, arXiv 2604.00886).

    What is kept or left out are the pixels of one visual token, as the processor made them. Two are
    equal if none of their values differ by more than `threshold`. Take a token X with A to its
    left, B above it, and C above A. If C equals A and not B, X is predicted to be B; else it is
    predicted to be A. In the first row it is predicted to be A, in the first column B. A token that
    equals its prediction is left out, and its prediction stands for it when later tokens are
    compared. The first token always stays.

    Dropped patches are neither computed in the tower nor attended to, so that this saves the
    tower's time too. Kept patches have the places that they had. How many stay follows from the
    picture alone: with a threshold of 0 a noisy photograph loses none, and a blank page loses most.

    It is defined for pictures, not for videos, and works on towers that take patches one by one
    (the Qwen and GLM families). Its pass of the tower serves no other method.

    Args:
        threshold: The most by which values of equal pixels may differ, in the processor's units
            (after normalisation). At 0 no pixel is lost. Above 0, each token is compared with what
            stands for its neighbour, so that errors do not add up.

    Raises:
        ValueError: `retention`, `tokens`, `layer` or weights="mass", which it does not take.
    """

    _: KW_ONLY
    threshold: float = 0.0

    needs: ClassVar[frozenset[str]] = frozenset({"pixels"})
    shares: ClassVar[tuple[str, ...]] = ("view",)
    fixed_k: ClassVar[bool] = False
    budgeted: ClassVar[bool] = False

    def __post_init__(self):
        for argument in ("retention", "tokens"):
            if (value := getattr(self, argument)) is not None:
                raise ValueError(
                    f"{argument}={value}: with method {self.name!r} the picture itself says how "
                    "many tokens stay; leave it out."
                )
        super().__post_init__()
        check_number("threshold", self.threshold)
        if self.weights != "none":
            raise ValueError(
                f"weights={self.weights!r}: method {self.name!r} knows nothing of the tokens that "
                "it leaves out before the vision tower, so that none stands for them."
            )

    @property
    def share(self) -> None:
        """No share of the tokens is asked for."""

    def enter(self, pixels: Tensor, grid: Grid) -> Tensor:
        """Return the places of the tokens that go through the tower: (k,) int64, sorted.

        Args:
            pixels: (N, c) of each token of a picture.
            grid: Where they lie in it.
        """
        views = pixels.split([view.n_tokens for view in grid.views])
        known = [
            self._known(part.unflatten(0, (view.height, view.width)))
            for part, view in zip(views, grid.views, strict=True)
        ]
        return (~torch.cat(known)).nonzero().flatten()

    def _known(self, pixels: Tensor) -> Tensor:
        """(H * W,) bool of pixels (H, W, c): those that are what is predicted."""
        return (self._exactly if self.threshold == 0 else self._nearly)(pixels).flatten()

    def _exactly(self, pixels: Tensor) -> Tensor:
        """(H, W) bool: where nothing is lost, all of a picture can be predicted at once."""
        left = (pixels[:, 1:] == pixels[:, :-1]).all(-1)  # (H, W - 1) each equals its A
        above = (pixels[1:] == pixels[:-1]).all(-1)  # (H - 1, W) each equals its B
        known = torch.zeros_like(pixels[..., 0], dtype=torch.bool)  # (H, W)
        known[0, 1:], known[1:, 0] = left[0], above[:, 0]
        across = above[:, :-1] & ~left[:-1]  # (H - 1, W - 1) C equals A and not B
        known[1:, 1:] = torch.where(across, above[:, 1:], left[1:])
        return known

    def _nearly(self, pixels: Tensor) -> Tensor:
        """(H, W) bool, one diagonal after the other, whose tokens do not predict each other."""
        height, width = pixels.shape[:2]
        tokens = pixels.flatten(0, 1)
        stands = torch.arange(len(tokens), device=pixels.device)  # the token that each is taken for

        def equal(a: Tensor, b: Tensor) -> Tensor:
            return ((tokens[a] - tokens[b]).abs() <= self.threshold).all(-1)

        for diagonal in range(1, height + width - 1):
            rows = torch.arange(max(0, diagonal - width + 1), min(height, diagonal + 1))
            places = (rows * width + diagonal - rows).to(stands.device)
            row, column = places // width, places % width
            left = stands[places - (column > 0).long()]
            above = stands[places - width * (row > 0).long()]
            corner = stands[(places - width - 1).clamp(min=0)]
            across = (column == 0) | ((row > 0) & equal(corner, left) & ~equal(corner, above))
            predicted = torch.where(across, above, left)
            stands[places] = torch.where(equal(places, predicted), predicted, places)
        return (stands != torch.arange(len(tokens), device=stands.device)).unflatten(
            0, (height, width)
        )
