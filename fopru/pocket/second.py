"""The second world: scenes that are harder where those of the first were at their ceiling.

More and smaller things, two signs of three digits, more bars. Some combinations are kept from
training: pairs of colour and shape, pairs of neighbouring digits, items with prices. And some
things often come together, so that one of them can be expected where it is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from PIL import ImageDraw

from fopru.pocket.diagrams import Diagram
from fopru.pocket.drawing import (
    COLORS,
    PAPERS,
    Box,
    Mark,
    Question,
    Scene,
    background,
    extent,
    font,
    free_place,
    write,
)
from fopru.pocket.objects import FREQUENCY, PAIRS, SHAPES, Thing, add_things
from fopru.pocket.papers import Chart, Receipt, charts

NEW_PAIRS = frozenset(
    ([*COLORS][(i + step) % len(COLORS)], shape)
    for i, shape in enumerate(SHAPES)
    for step in (0, 3)
)
"""Pairs of colour and shape that no training scene shows or asks about: two of each shape."""

NEW_DIGITS = frozenset((str(a), str((3 * a + 1) % 10)) for a in range(10))
"""Pairs of neighbouring digits that no number of a training scene has: each digit is once the left
one and once the right one."""

_FAMILIAR = [pair for pair in PAIRS if pair not in NEW_PAIRS]
_COUPLES = np.random.default_rng(20261127).permutation(len(_FAMILIAR))[:16].reshape(8, 2).tolist()
COMPANIONS = {_FAMILIAR[a]: _FAMILIAR[b] for i, j in _COUPLES for a, b in ((i, j), (j, i))}
"""Pair of colour and shape -> the one that stands beside it in half of the cases."""


@lru_cache
def _pairs(new: bool) -> tuple[list[tuple[str, str]], np.ndarray]:
    """Pairs of colour and shape that scenes show, and the share of each."""
    chosen = [i for i, pair in enumerate(PAIRS) if (pair in NEW_PAIRS) == new]
    return [PAIRS[i] for i in chosen], FREQUENCY[chosen] / FREQUENCY[chosen].sum()


@lru_cache
def popular(new: bool) -> tuple[tuple[str, str], ...]:
    """The twelve pairs that are drawn most often."""
    pairs, shares = _pairs(new)
    return tuple(pairs[i] for i in np.argsort(-shares, kind="stable")[:12])


@lru_cache
def numbers(length: int, new: bool) -> tuple[str, ...]:
    """Numbers of so many digits: those of training, or those that hold a pair kept from it."""
    every = map(str, range(10 ** (length - 1), 10**length))
    return tuple(n for n in every if any(pair in NEW_DIGITS for pair in pairwise(n)) == new)


@lru_cache
def prices(item: int, new: bool) -> tuple[int, ...]:
    """The prices that an item has in training, or the ten that other items have and it has not."""
    order = np.random.default_rng((20261126, item)).permutation(numbers(2, False)).astype(int)
    return tuple(sorted((order[:10] if new else order[10:]).tolist()))


class Plate(NamedTuple):
    """A three-digit number on a board."""

    text: str
    color: str
    """The colour of the board."""
    box: Box
    glyphs: tuple[Box, ...]
    """The boxes of the digits."""

    @property
    def marks(self) -> tuple[Mark, ...]:
        """The digits and the words for them."""
        digits = self.text[0], *(f"##{digit}" for digit in self.text[1:])
        pairs = zip(self.glyphs, digits, strict=True)
        return tuple(Mark(box, {"name": digit, "color": self.color}) for box, digit in pairs)


@dataclass(frozen=True)
class Busy(Scene):
    """Three to seven things, and two signs."""

    things: tuple[Thing, ...]
    signs: tuple[Plate, ...]

    new: ClassVar[bool] = False
    """Whether all combinations are among those that are kept from training; else none is."""
    counts: ClassVar[tuple[tuple[int, int], tuple[int, int]]] = ((1, 4), (3, 8))
    """How many things there are, the end excluded: with `few`, and as usual."""
    boards: ClassVar[tuple[int, int]] = (1, 2)
    """How many signs there are: with `few`, and as usual."""
    radii: ClassVar[tuple[int, int]] = (6, 30)
    """The smallest and the largest radius of a thing, in pixels."""

    @classmethod
    def draw(cls, rng: np.random.Generator, few: bool = False) -> Self:
        image = background(rng)
        draw = ImageDraw.Draw(image)
        taken: list[Box] = []
        first = int(rng.integers(2))
        signs = tuple(
            _add_plate(rng, draw, taken, cls.new, (first + i) % 2)
            for i in range(cls.boards[0 if few else 1])
        )
        count = int(rng.integers(*cls.counts[0 if few else 1]))
        things = add_things(rng, draw, count, cls.radii, taken, _kinds(rng, cls.new))
        return cls(image, things, signs)

    @property
    def marks(self) -> tuple[Mark, ...]:
        things = [Mark(t.outline, {"name": t.shape, "color": t.color}) for t in self.things]
        return (*things, *(mark for sign in self.signs for mark in sign.marks))

    @property
    def caption(self) -> str:
        """Shapes from left to right, and the signs."""
        names = [thing.name for thing in sorted(self.things, key=lambda t: t.x)]
        return ", ".join([*names, *(f"{s.color} sign {s.text}" for s in self.signs)])

    def truth(self) -> dict[str, Any]:
        return {
            "objects": [{**t._asdict(), "box": t.box} for t in self.things],
            "signs": [sign._asdict() for sign in self.signs],
        }


@dataclass(frozen=True)
class Busier(Busy):
    """More things and signs, of which nothing can be asked: the tower learns from each of them."""

    counts: ClassVar = ((7, 15), (7, 15))
    boards: ClassVar = (4, 4)


@dataclass(frozen=True)
class NewBusy(Busy):
    """Things and numbers that no training scene shows."""

    new: ClassVar = True


def _kinds(rng: np.random.Generator, new: bool) -> Iterator[tuple[str, str]]:
    """Pairs of colour and shape without end; half of those that have a companion bring it along."""
    pairs, shares = _pairs(new)
    while True:
        pair = pairs[rng.choice(len(pairs), p=shares)]
        yield pair
        if pair in COMPANIONS and rng.random() < 0.5:
            yield COMPANIONS[pair]


def _add_plate(
    rng: np.random.Generator, draw: ImageDraw.ImageDraw, taken: list[Box], new: bool, dark: int
) -> Plate:
    choice = numbers(3, new)
    text = choice[rng.integers(len(choice))]
    face = font(rng, 16, 22)
    pad = 4
    width, height = (v + 2 * pad for v in extent(face, text))
    while (place := free_place(rng, taken, width, height)) is None:
        pass
    left, top = place
    board, ink = PAPERS[dark]
    draw.rectangle((left, top, left + width - 1, top + height - 1), fill=board, outline=ink)
    glyphs = write(draw, face, text, left + pad, top + pad, ink)
    taken.append((left, top, left + width, top + height))
    return Plate(text, ("white", "black")[dark], taken[-1], glyphs)


@dataclass(frozen=True)
class Bill(Receipt):
    """A receipt whose items have no price that is kept from training."""

    new: ClassVar[bool] = False

    @classmethod
    def prices(cls, rng: np.random.Generator, items: list[int]) -> list[int]:
        found: list[int] = []
        for item in items:
            left = [price for price in prices(item, cls.new) if price not in found]
            found.append(left[rng.integers(len(left))])
        return found

    @classmethod
    def price_left(cls, rng: np.random.Generator, item_end: int, column: int, few: bool) -> int:
        """With `few`, near its item, from where it is easier to learn what belongs together."""
        return min(column, item_end + int(rng.integers(4, 25))) if few else column


@dataclass(frozen=True)
class NewBill(Bill):
    """Each item with a price that it never has in training."""

    new: ClassVar = True


@dataclass(frozen=True)
class Plan(Diagram):
    """A diagram with larger arrowheads, whose patches are told so."""

    head: ClassVar = (13, 8)

    @property
    def marks(self) -> tuple[Mark, ...]:
        arrows = [Mark(a.strip(7), {"name": "arrow"}) for a in self.arrows]
        heads = [Mark(a.point(*self.head), {"name": "point"}) for a in self.arrows]
        boxes = [Mark(box, {"name": letter}) for letter, box in self.boxes.items()]
        return (*arrows, *heads, *boxes)


@dataclass(frozen=True)
class Bars(Chart):
    """Up to six bars, some of nearly one height."""

    new: ClassVar[bool] = False
    counts: ClassVar = ((3, 5), (4, 7))

    @classmethod
    def values(cls, rng: np.random.Generator, count: int) -> list[int]:
        found: list[int] = []
        for value in rng.permutation(numbers(2, cls.new)).astype(int).tolist():
            if all(abs(value - other) > 2 for other in found):
                found.append(value)
        return found[:count]


@dataclass(frozen=True)
class NewBars(Bars):
    """Values whose digits never stand together in training."""

    new: ClassVar = True


def presence(scene: Busy, rng: np.random.Generator) -> Iterator[Question]:
    """Ask whether there is such a thing, as in the first world, and for a "likely" one: a companion
    of what is there that is not there itself. Training leaves these out, so that there a question
    for a companion mostly has the answer yes.
    """
    there = [(t.color, t.shape) for t in scene.things]
    distinct = list(dict.fromkeys(there))
    for color, shape in (distinct[i] for i in rng.permutation(len(distinct))[:3]):
        boxes = tuple(t.box for t in scene.things if (t.color, t.shape) == (color, shape))
        yield Question("presence", "there", f"is there a {color} {shape}?", "yes", boxes)
    absent = [p for p in PAIRS if p not in there and (p in NEW_PAIRS) == scene.new]
    mixed = {(c, s) for c, _ in there for _, s in there}
    expected = {COMPANIONS.get(pair) for pair in there}
    pools = {
        "random": [p for p in absent if p not in expected],
        "popular": [p for p in popular(scene.new) if p in absent],
        "adversarial": [p for p in absent if p in mixed],
    }
    kinds = [*rng.permutation(list(pools)).tolist()[: len(distinct)], "likely"]
    pools["likely"] = [p for p in absent if p in expected]
    for variant in kinds:
        if pools[variant]:
            color, shape = pools[variant][rng.integers(len(pools[variant]))]
            yield Question("presence", variant, f"is there a {color} {shape}?", "no")


def reading(scene: Busy, rng: np.random.Generator) -> Iterator[Question]:
    """Ask for the number on each sign."""
    for sign in scene.signs:
        text = f"what number is on the {sign.color} sign?"
        yield Question("reading", sign.color, text, sign.text, sign.glyphs)


def values(scene: Bars, rng: np.random.Generator) -> Iterator[Question]:
    """Ask for the value of each bar: only values rest on which digits stand together."""
    return (question for question in charts(scene, rng) if question.variant == "value")
