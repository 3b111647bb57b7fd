"""The base of every pruning method: how many tokens to keep, and which."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import KW_ONLY, dataclass, replace
from difflib import get_close_matches
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fopru.applying import Before, Session, at_work
from fopru.encoding import VISION, Encoded, EncodedImage, Tap, encode
from fopru.families import Family, Grid, UnsupportedModelError
from fopru.pruned import PrunedImage, PrunedInputs, shorten
from fopru.weights import WEIGHTS, masses


class Merged(NamedTuple):
    """What a merging method makes of one view's tokens."""

    kept: Tensor
    """(k,) int64, sorted and distinct: the places at which the new tokens stand."""
    features: Tensor
    """(k, d): the new tokens, as the LLM gets them."""
    sources: list[Tensor]
    """For each, the tokens that went into it."""


METHODS: dict[str, type[Pruner]] = {}
"""Every registered method, name -> class; each accepts `retention=`."""

POSITIONS = ("reindex", "preserve")


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
        weights: "mass" lets the language model attend to each kept token as to all those that are
            most like it (`fopru.weights`), in `with pruner(model)` only; not for merging methods
            or those inside the language model.

    Raises:
        ValueError: a value outside of these, or both `retention` and `k`.
    """

    retention: float | None = None
    _: KW_ONLY
    k: int | None = None
    layer: int | None = None
    positions: str | None = None
    weights: str = "none"

    needs: ClassVar[frozenset[str]] = frozenset()
    """What the method reads: any of `fopru.significance.AXES`, "keys" (of the same block), "vision"
    (the tower's features) and "text" (the prompt's). `encode` computes no more."""

    fixed_k: ClassVar[bool] = True
    """Whether k is known from sizes alone."""

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
            check_integer("k", self.k, minimum=1)
        else:
            if self.retention is None:
                object.__setattr__(self, "retention", 0.25)
            number = isinstance(self.retention, numbers.Real)
            if not number or isinstance(self.retention, bool) or not 0 < self.retention <= 1:
                raise ValueError(f"retention={self.retention!r}: must be a number in (0, 1].")
        if self.layer is not None:
            check_integer("layer", self.layer)
        check_choice("positions", self.positions, (None, *POSITIONS))
        check_choice("weights", self.weights, WEIGHTS)
        if self.weights == "mass" and not self.selects():
            raise ValueError(
                f"weights='mass': {type(self).__name__} does not select tokens before the language "
                "model, and only those can stand for others; use weights='none'."
            )

    @classmethod
    def selects(cls) -> bool:
        """Whether kept tokens are tokens of the picture, chosen before the language model."""
        return cls.merge is Pruner.merge

    @property
    def asks(self) -> bool:
        """Whether what is kept depends on the question."""
        return "text" in self.needs

    def numbering(self, family: Family) -> str:
        """How kept tokens are numbered in this family: one of `POSITIONS`.

        Raises:
            UnsupportedModelError: they are to be numbered anew where they cannot be (M-RoPE).
        """
        if self.positions == "reindex" and family.spatial:
            raise UnsupportedModelError(
                f"positions='reindex': {family.title} numbers visual tokens by time, height and "
                "width, which pruning leaves gaps in; use positions='preserve' or None."
            )
        return self.positions or family.positions

    def score(self, image: EncodedImage) -> Tensor | None:
        """(N,) float32 significance of one view's tokens, or None where the method has none."""
        return None

    def select(self, image: EncodedImage, k: int) -> Tensor:
        """Indices of the k tokens to keep of one view: (k,) int64, sorted, distinct."""
        raise NotImplementedError

    def merge(self, image: EncodedImage, k: int) -> Merged:
        """The k tokens made of one view. Merging methods override this instead of `select`."""
        kept = self.select(image, k)
        self._check("select", kept, k, image.grid.n_tokens)
        return Merged(kept, image.features[kept.to(image.features.device)], list(kept[:, None]))

    def taps(self, family: Family) -> set[Tap]:
        """What this method needs to learn from the vision tower."""
        axes = self.needs - {"vision", "text"}
        taps = {Tap(family.block(self.layer), axis) for axis in axes}
        return taps | ({VISION} if "vision" in self.needs else set())

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

    def budgets_of(self, image: EncodedImage) -> list[int]:
        """Tokens kept of each view of this picture; where `fixed_k`, those of its grid."""
        return self.budgets(image.grid)

    def n_keep(self, grid: Grid) -> int:
        """Tokens kept of a picture with this grid: known from sizes, before anything is encoded."""
        return sum(self.budgets(grid))

    def prune(self, model: PreTrainedModel, inputs: Mapping[str, Any]) -> PrunedInputs:
        """Encode, select and compact: `model.generate(**pruner.prune(model, inputs))`.

        Raises:
            UnsupportedModelError: the model's family has no adapter, or no attention to read.
            ValueError: no images, or images and placeholders that do not match.
        """
        self._refuse_weights()
        return self.compact(encode(model, inputs, [self]))

    def _refuse_weights(self) -> None:
        if self.weights != "none":
            raise ValueError(
                f"weights={self.weights!r}: shorter inputs cannot carry weights into the language "
                "model; use `with pruner(model):` around generate or forward."
            )

    @torch.no_grad()
    def compact(self, encoded: Encoded) -> PrunedInputs:
        """Make shorter inputs that hold the kept tokens only.

        Raises:
            ValueError: what this method needs was not tapped by `encode`, or `select` broke its
                promise of k sorted, distinct indices.
        """
        self._refuse_weights()
        return self.shortened(encoded, *self.choose(encoded))

    def choose(self, encoded: Encoded) -> tuple[tuple[PrunedImage, ...], list[Tensor]]:
        """The first half of `compact`: what is kept of each picture, and its (k, d) tokens."""
        pairs = []
        for image in encoded.images:
            if "text" in self.needs and image.text is None:
                image = replace(image, text=encoded.text(image.sample))
            pairs.append(self._prune_image(image))
        images, features = zip(*pairs, strict=True)
        return images, list(features)

    def shortened(
        self, encoded: Encoded, images: tuple[PrunedImage, ...], features: list[Tensor]
    ) -> PrunedInputs:
        """The second half of `compact`: the inputs without the tokens that were not kept."""
        text, columns = shorten(encoded, images, self.numbering(encoded.family))
        return PrunedInputs(text, encoded.family, features, images, columns)

    def _prune_image(self, image: EncodedImage) -> tuple[PrunedImage, Tensor]:
        """What is kept of a picture, and its (k, d) tokens."""
        kept, significance, features, sources, start = [], [], [], [], 0
        if image.deep is not None and type(self).merge is not Pruner.merge:
            raise UnsupportedModelError(
                f"method {self.name!r} makes new tokens, and the first layers of "
                f"{image.family.title} want features that new tokens do not have: it is undefined "
                "here."
            )
        for view, k in zip(image.views(), self.budgets_of(image), strict=True):
            view = replace(view, significance=self.score(view))
            chosen, tokens, members = self.merge(view, k)
            self._check("merge", chosen, k, view.grid.n_tokens)
            kept.append(chosen + start)
            significance.append(view.significance)
            features.append(tokens)
            sources += [tokens.cpu() + start for tokens in members]
            start += view.grid.n_tokens
        scored = significance[0] is not None
        places = torch.cat(kept)
        pruned = PrunedImage(
            sample=image.sample,
            kept=places.cpu(),
            significance=torch.cat(significance).cpu() if scored else None,
            grid=image.grid,
            sources=sources,
            mass=None if self.weights == "none" else masses(image.features, places).cpu(),
        )
        tokens = torch.cat(features)
        if image.deep is not None:
            tokens = torch.cat([tokens, image.deep[pruned.kept.to(tokens.device)]], 1)
        return pruned, tokens

    def _check(self, function: str, kept: Tensor, k: int, n: int) -> None:
        if kept.shape != (k,) or not _is_subset(kept, n):
            raise ValueError(
                f"{type(self).__name__}.{function} must return {k} sorted, distinct indices below "
                f"{n}; got {kept}."
            )

    def __call__(self, model: PreTrainedModel) -> AbstractContextManager[Session]:
        """`with pruner(model) as session:` prunes whatever goes through the model in the block.

        Raises:
            UnsupportedModelError: there is no adapter for the model.
            RuntimeError: another pruner is at work on this model.
            ValueError: weights="mass", and an attention kernel whose logits take no bias.
        """
        return at_work(Before(self, model))


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


def check_integer(argument: str, value: Any, minimum: int | None = None) -> None:
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
        names = ", ".join(map(repr, allowed))
        raise ValueError(f"{argument}={value!r}: must be one of {names}.{hint(value, allowed)}")


def hint(value: Any, allowed: Iterable[Any]) -> str:
    """A closing sentence that names what comes closest to the value, if anything does."""
    near = get_close_matches(str(value), [a for a in allowed if isinstance(a, str)], 1)
    return f" Did you mean {near[0]!r}?" if near else ""
