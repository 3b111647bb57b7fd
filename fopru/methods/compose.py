"""A method put together: the score of one, a selector, and a budget."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, fields, replace
from typing import ClassVar

from torch import Tensor

from fopru.encoding import EncodedImage, Tap
from fopru.families import Family
from fopru.methods.picks import Pick, Top
from fopru.picking import ABSOLUTE
from fopru.pruner import Pruner


@dataclass(frozen=True)
class Budget:
    """What `retention` is a share of. A subclass overrides `count`."""

    scored: ClassVar[bool] = False
    """Whether it reads scores."""

    def count(self, image: EncodedImage, share: float) -> int:
        """Return how many of a view's N tokens stay, from 1 to N.

        Args:
            image: The view; `image.significance` are its scores, where there are any.
            share: The retention, in (0, 1).
        """
        raise NotImplementedError(f"{type(self).__name__} must override `count`.")


@dataclass(frozen=True)
class Share(Budget):
    """Keep the share `retention` of the tokens of each view, as all methods do: floor(N *
    retention), at least 1."""


@dataclass(frozen=True)
class Holds(Budget):
    """Keep the fewest tokens that hold the share `retention` of a view's significance.

    Where few tokens hold most of the significance, few stay. They are counted from the largest
    score down, whichever tokens the selector takes.

    Raises:
        ValueError: while pruning, if scores are negative or all 0, so that they are no shares.
    """

    scored: ClassVar[bool] = True

    def count(self, image: EncodedImage, share: float) -> int:
        held = as_shares(image).sort(descending=True).values.cumsum(0)  # (N,)
        return int((held < share - ABSOLUTE).sum()) + 1


def as_shares(image: EncodedImage) -> Tensor:
    """Return the scores of a view as shares of their sum, (N,) float64 on the CPU.

    Raises:
        ValueError: some are negative, or all are 0.
    """
    scores = image.significance.cpu().double()
    if not scores.min() >= 0 or not scores.any():
        raise ValueError(
            "budget: shares of the significance take scores of at least 0 that are not all 0; "
            f"here they lie between {scores.min():g} and {scores.max():g}."
        )
    return scores / scores.sum()


TOP, SHARE = Top(), Share()


@dataclass(frozen=True)
class Compose(Pruner):
    """A method put together from the score of another, a selector and a budget.

    `Compose(scorer=FoPru(axis="received"), pick=MMR(0.5))` ranks as FoPru does and selects by
    maximal marginal relevance. Only the scores of the scorer are used, and not its own way to
    select.

    Args:
        scorer: A pruner that scores tokens, such as `fopru.FoPru(layer=3)`: it reads what it always
            does, and its retention, tokens, positions, weights and per stay at their defaults. None
            where neither the selector nor the budget reads scores.
        pick: The selector: `Top`, `Cells`, `MMR`, `Halves` or `MaxMin`, or a `Pick` of your own.
        budget: What `retention` is a share of: `Share` of the tokens, `Holds` of the significance,
            or `Adaptive` of the tokens in the mean over pictures. `tokens` goes with `Share` only.

    Raises:
        ValueError: a scorer without a score, or one that makes new tokens or prunes inside the
            language model, or with arguments that belong to `Compose`; no scorer where scores are
            read; `tokens` with another budget than `Share`; or `layer`, which the scorer takes.

    Example:
        >>> pick, budget = fopru.Halves(0.5), fopru.Holds()
        >>> pruner = fopru.Compose(0.8, scorer=fopru.FoPru(), pick=pick, budget=budget)
    """

    _: KW_ONLY
    scorer: Pruner | None = None
    pick: Pick = TOP
    budget: Budget = SHARE

    def __post_init__(self):
        for name, kind, such in (("pick", Pick, TOP), ("budget", Budget, SHARE)):
            if not isinstance(value := getattr(self, name), kind):
                raise ValueError(f"{name}={value!r}: must be a {kind.__name__}, such as {such}.")
        self._check_scorer()
        if self.layer is not None:
            raise ValueError(f"layer={self.layer}: give it to the scorer, which reads the block.")
        super().__post_init__()
        if self.tokens is not None and not self.fixed_k:
            raise ValueError(
                f"tokens={self.tokens}: with budget={self.budget} the picture says how many tokens "
                "stay; leave it out."
            )

    def _check_scorer(self) -> None:
        if self.scorer is None:
            if reader := next((p for p in (self.pick, self.budget) if p.scored), None):
                raise ValueError(f"scorer=None: {reader} reads scores; give a pruner that has one.")
            return
        if not isinstance(self.scorer, Pruner):
            raise ValueError(f"scorer={self.scorer!r}: must be a pruner, such as fopru.FoPru().")
        kind, name = type(self.scorer), self.scorer.name
        if not kind.selects():
            raise ValueError(
                f"scorer={name!r}: must be a method that selects tokens before the language model; "
                "this one makes new tokens, or drops them inside it."
            )
        if kind.score in (Pruner.score, Compose.score):
            raise ValueError(f"scorer={name!r}: this method has no score of its own.")
        own = {field.name for field in fields(Pruner)} - {"layer"}
        for field in fields(kind):
            value = getattr(self.scorer, field.name)
            if field.name in own and value != field.default:
                raise ValueError(
                    f"scorer={name!r} has {field.name}={value!r}, which would count for nothing: "
                    "give it to Compose."
                )

    @property
    def needs(self) -> frozenset[str]:
        """What the scorer and the selector read, as `fopru.Pruner.needs`."""
        return self.pick.needs | (self.scorer.needs if self.scorer else frozenset())

    @property
    def shares(self) -> tuple[str, ...]:
        """The values of `per` with which both the scorer and the selector are defined."""
        there = self.scorer.shares if self.scorer else self.pick.shares
        return tuple(per for per in there if per in self.pick.shares)

    @property
    def fixed_k(self) -> bool:
        """Whether the number of kept tokens follows from sizes alone."""
        return isinstance(self.budget, Share)

    def attended(self, family: Family) -> str | None:
        return self.scorer.attended(family) if self.scorer else None

    def taps(self, family: Family) -> set[Tap]:
        family.check(self.needs)
        return self.scorer.taps(family) if self.scorer else set()

    def score(self, image: EncodedImage) -> Tensor | None:
        return self.scorer.score(image) if self.scorer else None

    def select(self, image: EncodedImage, k: int) -> Tensor:
        return self.pick.select(image, k)

    def scored(self, image: EncodedImage) -> list[EncodedImage]:
        """Return each part of a picture that has a budget of its own, with its scores."""
        parts = image.parts(self.parts(image.grid))
        return [replace(part, significance=self.score(part)) for part in parts]

    def budgets_of(self, image: EncodedImage) -> list[int]:
        if self.fixed_k:
            return super().budgets_of(image)
        if self.share == 1:
            return [part.n_tokens for part in self.parts(image.grid)]
        return [
            self.budget.count(part, self.share) if part.grid.n_tokens > 1 else 1
            for part in self.scored(image)
        ]
