"""The base of every pruning method: how many tokens to keep, and the shorter inputs they make."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import KW_ONLY, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fopru.encoding import Encoded, EncodedImage, Tap, encode
from fopru.families import Family, Grid, UnsupportedModelError

if TYPE_CHECKING:
    from fopru.run import Run

METHODS: dict[str, type[Pruner]] = {}
"""Every registered method, name -> class; each accepts `retention=`."""

POSITIONS = ("reindex", "preserve")

PER_TOKEN = {
    "input_ids": 0,
    "attention_mask": 0,
    "position_ids": 0,
    "token_type_ids": 0,
    "mm_token_type_ids": 0,
    "labels": -100,
}
"""Inputs with one value per token, and what fills the padding (input_ids: unless the model has a
pad token)."""


def floor_share(n: int, share: float) -> int:
    """floor(n * share) of the exact value, at least 1: 0.29 of 100 is 29."""
    return max(1, math.floor(round(n * share, 9)))


@dataclass(frozen=True)
class Pruner:
    """A visual-token pruning method. Subclasses override `select`, and `score` where they rank.

    Subclass with `class Mine(Pruner, name="mine")` to register in `fopru.METHODS`.

    Args:
        retention: share of each view's visual tokens to keep, in (0, 1]; 0.25 where neither it nor
            `k` is given.
        k: exact count per picture instead, shared among its views in proportion to their sizes.
        layer: 0-based encoder block to read, negative from the end; None is the block whose output
            the model uses (FoPru's choice).
        positions: "reindex" numbers the shorter prompt contiguously (the paper's), "preserve" keeps
            each token's original position id; None is the family's default.

    Raises:
        ValueError: a value outside of these, or both `retention` and `k`.
    """

    retention: float | None = None
    _: KW_ONLY
    k: int | None = None
    layer: int | None = None
    positions: str | None = None

    needs: ClassVar[frozenset[str]] = frozenset()
    """Which of `fopru.significance.AXES` the method reads; `encode` computes no more."""

    name: ClassVar[str]

    def __init_subclass__(cls, name: str | None = None, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if name is None:
            return
        if name in METHODS:
            raise ValueError(f"name={name!r}: {METHODS[name].__name__} has that name already.")
        cls.name = name
        METHODS[name] = cls

    def __post_init__(self):
        if self.retention is not None and self.k is not None:
            raise ValueError(
                f"retention={self.retention} and k={self.k}: give one of them, not both."
            )
        if self.k is not None:
            _check_integer("k", self.k, minimum=1)
        else:
            if self.retention is None:
                object.__setattr__(self, "retention", 0.25)
            number = isinstance(self.retention, numbers.Real)
            if not number or isinstance(self.retention, bool) or not 0 < self.retention <= 1:
                raise ValueError(f"retention={self.retention!r}: must be a number in (0, 1].")
        if self.layer is not None:
            _check_integer("layer", self.layer)
        check_choice("positions", self.positions, (None, *POSITIONS))

    def score(self, image: EncodedImage) -> Tensor | None:
        """(N,) float32 significance of one view's tokens, or None where the method has none."""
        return None

    def select(self, image: EncodedImage, k: int) -> Tensor:
        """Indices of the k tokens to keep of one view: (k,) int64, sorted, distinct."""
        raise NotImplementedError

    def taps(self, family: Family) -> set[Tap]:
        """What this method needs to learn from the vision tower."""
        return {Tap(family.block(self.layer), axis) for axis in self.needs} if self.needs else set()

    def budgets(self, grid: Grid) -> list[int]:
        """Tokens kept of each view of a picture with this grid.

        Raises:
            ValueError: `k` is larger than the picture, or smaller than its number of views.
        """
        sizes = [view.n_tokens for view in grid.views]
        if self.k is None:
            return [floor_share(size, self.retention) for size in sizes]
        if not len(sizes) <= self.k <= sum(sizes):
            raise ValueError(
                f"k={self.k}: a picture of {sum(sizes)} visual tokens in {len(sizes)} view(s) "
                f"keeps {len(sizes)} to {sum(sizes)} of them."
            )
        return _in_proportion(self.k, sizes)

    def n_keep(self, grid: Grid) -> int:
        """Tokens kept of a picture with this grid: known from sizes, before anything is encoded."""
        return sum(self.budgets(grid))

    def prune(self, model: PreTrainedModel, inputs: Mapping[str, Any]) -> PrunedInputs:
        """Encode, select and compact: `model.generate(**pruner.prune(model, inputs))`.

        Raises:
            UnsupportedModelError: the model's family has no adapter, or no attention to read.
            ValueError: no images, or images and placeholders that do not match.
        """
        return self.compact(encode(model, inputs, [self]))

    def compact(self, encoded: Encoded) -> PrunedInputs:
        """Make shorter inputs that hold the kept tokens only.

        Raises:
            ValueError: what this method needs was not tapped by `encode`, or `select` broke its
                promise of k sorted, distinct indices.
        """
        images = tuple(self._prune_image(image) for image in encoded.images)
        features = [
            image.features[pruned.kept]
            for image, pruned in zip(encoded.images, images, strict=True)
        ]
        positions = self.positions or encoded.family.positions
        return PrunedInputs(_shorten(encoded, images, positions), encoded.family, features, images)

    def _prune_image(self, image: EncodedImage) -> PrunedImage:
        kept, significance, start = [], [], 0
        for view, k in zip(image.views(), self.budgets(image.grid), strict=True):
            view = replace(view, significance=self.score(view))
            chosen = self.select(view, k)
            if chosen.shape != (k,) or not _is_subset(chosen, view.grid.n_tokens):
                raise ValueError(
                    f"{type(self).__name__}.select must return {k} sorted, distinct indices below "
                    f"{view.grid.n_tokens}; got {chosen}."
                )
            kept.append(chosen + start)
            significance.append(view.significance)
            start += view.grid.n_tokens
        scored = significance[0] is not None
        return PrunedImage(
            sample=image.sample,
            kept=torch.cat(kept),
            significance=torch.cat(significance) if scored else None,
            grid=image.grid,
        )

    def __call__(self, model: PreTrainedModel) -> AbstractContextManager[Run]:
        """`with pruner(model) as run:` prunes all that goes through the model; see `fopru.run`."""
        from fopru.run import pruned_model

        return pruned_model(self, model)


@dataclass(frozen=True)
class PrunedImage:
    """What was kept of one picture of N visual tokens."""

    sample: int
    """The batch row whose prompt holds the picture."""
    kept: Tensor
    """(k,) int64, sorted: indices into the picture's own visual tokens."""
    significance: Tensor | None
    """(N,) float32, or None where the method has none."""
    grid: Grid

    @property
    def n_full(self) -> int:
        return self.grid.n_tokens

    @property
    def n_kept(self) -> int:
        return len(self.kept)

    @property
    def view(self) -> Tensor:
        """(N,) int64: 0 for the base view, 1 for the tiles' canvas."""
        return self.grid.view

    @property
    def rows(self) -> Tensor:
        """(N,) int64: row within the view."""
        return self.grid.rows

    @property
    def columns(self) -> Tensor:
        """(N,) int64: column within the view, -1 for a newline token."""
        return self.grid.columns

    def box(self, i: int) -> tuple[float, float, float, float]:
        """(x0, y0, x1, y1) of visual token i, in [0, 1] coordinates of its view.

        Raises:
            ValueError: token i is a newline, which covers nothing.
        """
        row, column = int(self.rows[i]), int(self.columns[i])
        if column < 0:
            raise ValueError(f"i={i}: that visual token is a newline and covers no patch.")
        height, width, _ = self.grid.views[int(self.view[i])]
        return column / width, row / height, (column + 1) / width, (row + 1) / height


class PrunedInputs(Mapping[str, Any]):
    """Inputs with the kept visual tokens only: `model.generate(**pruned)`, `model(**pruned)`.

    The pictures ride along as `mm_encoder_outputs`, already encoded. With `positions="preserve"`
    call `generate` with its cache (the default): without it transformers drops the attention mask
    and then reads the gaps in `position_ids` as borders between packed sequences.
    """

    def __init__(
        self,
        text: Mapping[str, Any],
        family: Family,
        features: list[Tensor],
        images: tuple[PrunedImage, ...],
    ):
        self._text = dict(text)
        self._family = family
        self.features = features
        """(k, d) per picture: the kept tokens."""
        self.images = images
        """One `PrunedImage` per picture, flat and in prompt order."""

    def __getitem__(self, name: str) -> Any:
        if name == "mm_encoder_outputs":
            return self._family.encoder_outputs(self.features)
        return self._text[name]

    def __iter__(self) -> Iterator[str]:
        yield from self._text
        yield "mm_encoder_outputs"

    def __len__(self) -> int:
        return len(self._text) + 1

    def __repr__(self) -> str:
        kept = ", ".join(f"{image.n_kept} of {image.n_full}" for image in self.images)
        return f"PrunedInputs({', '.join(self)}; visual tokens kept: {kept})"

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> PrunedInputs:
        """The same on another device; `dtype` is that of the features."""
        text = {n: v.to(device) if isinstance(v, Tensor) else v for n, v in self._text.items()}
        features = [feature.to(device=device, dtype=dtype) for feature in self.features]
        return PrunedInputs(text, self._family, features, self.images)


def _shorten(encoded: Encoded, images: tuple[PrunedImage, ...], positions: str) -> dict[str, Any]:
    """Gather everything that has one value per token, (B, L) -> (B, L'), and pad again."""
    inputs = dict(encoded.inputs)
    ids = inputs["input_ids"]  # (B, L)
    mask = inputs.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask
    if mask.shape != ids.shape:
        raise ValueError(
            f"attention_mask of shape {tuple(mask.shape)}: must be that of input_ids, "
            f"{tuple(ids.shape)}."
        )
    if positions == "preserve":
        inputs.setdefault("position_ids", (mask.cumsum(1) - 1).clamp(min=0))
    elif inputs.get("position_ids") is not None:
        raise ValueError(
            "position_ids were given, and positions='reindex' would number the tokens "
            "anew: use positions='preserve', or leave position_ids out."
        )
    inputs["attention_mask"] = mask

    kept = [torch.zeros(image.n_full, dtype=torch.bool) for image in images]
    for flags, image in zip(kept, images, strict=True):
        flags[image.kept.cpu()] = True
    keep = mask.bool()  # (B, L)
    visual = ids == encoded.family.image_token_id
    keep[visual] = torch.cat(kept).to(keep.device)

    lengths = keep.sum(1)
    length = int(lengths.max())  # L'
    pad_right = bool((mask[:, -1] == 0).any())
    # A stable sort lines up the kept tokens, in order, at one end of each row.
    order = (~keep if pad_right else keep).to(torch.uint8).argsort(dim=1, stable=True)
    order = order[:, :length] if pad_right else order[:, -length:]  # (B, L')
    padding = ~keep.gather(1, order)
    fill = PER_TOKEN | {"input_ids": _pad_token_id(encoded.family)}
    for name in fill.keys() & inputs.keys():
        if inputs[name] is not None:
            inputs[name] = inputs[name].gather(1, order).masked_fill(padding, fill[name])
    return inputs


def _pad_token_id(family: Family) -> int:
    """Any id but the image token's: padding is masked, but placeholders are counted."""
    pad = family.config.get_text_config().pad_token_id
    return PER_TOKEN["input_ids"] if pad is None or pad == family.image_token_id else pad


def _in_proportion(k: int, sizes: list[int]) -> list[int]:
    """Split k by largest remainder, at least 1 and at most all of each part."""
    total = sum(sizes)
    parts = [max(1, k * size // total) for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (-(k * sizes[i] % total), i))
    while sum(parts) < k:
        for i in by_remainder:
            if sum(parts) < k and parts[i] < sizes[i]:
                parts[i] += 1
    while sum(parts) > k:
        parts[parts.index(max(parts))] -= 1
    return parts


def _is_subset(indices: Tensor, n: int) -> bool:
    steps = torch.cat([indices.new_tensor([-1]), indices, indices.new_tensor([n])]).diff()
    return bool((steps > 0).all())


def _check_integer(argument: str, value: Any, minimum: int | None = None) -> None:
    if (
        not isinstance(value, numbers.Integral)
        or isinstance(value, bool)
        or (minimum is not None and value < minimum)
    ):
        least = "" if minimum is None else f" of at least {minimum}"
        raise ValueError(f"{argument}={value!r}: must be an integer{least}.")


def check_choice(argument: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raises ValueError naming the argument, its value and what is allowed."""
    if value not in allowed:
        raise ValueError(f"{argument}={value!r}: must be one of {', '.join(map(repr, allowed))}.")


__all__ = ["METHODS", "PrunedImage", "PrunedInputs", "Pruner", "UnsupportedModelError"]
