"""Pictures of coloured shapes and a numbered sign, and the questions asked about them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Any, NamedTuple, Self

import numpy as np
from PIL import ImageDraw

from fopru.pocket.drawing import (
    COLORS,
    PAPERS,
    SIZE,
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

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
PLURALS = {shape: "crosses" if shape == "cross" else f"{shape}s" for shape in SHAPES}
PLACES = (
    ("top left", "top center", "top right"),
    ("center left", "center", "center right"),
    ("bottom left", "bottom center", "bottom right"),
)
MIN_RADIUS, MAX_RADIUS = 7, 45

PAIRS = tuple((color, shape) for shape in SHAPES for color in COLORS)
_ORDER = np.random.default_rng(20241121).permutation(len(PAIRS))
FREQUENCY = 1 / (_ORDER + 8) / np.sum(1 / (_ORDER + 8))
"""How often each pair is drawn: some are several times as common as others."""
POPULAR = tuple(PAIRS[i] for i in np.argsort(_ORDER)[:12])


class Thing(NamedTuple):
    """A coloured shape."""

    shape: str
    color: str
    x: int
    y: int
    radius: int

    @property
    def box(self) -> Box:
        """The box around the thing, in pixels."""
        r = self.radius
        return self.x - r, self.y - r, self.x + r + 1, self.y + r + 1

    @property
    def name(self) -> str:
        """The thing in words: its color and its shape."""
        return f"{self.color} {self.shape}"

    @property
    def place(self) -> str:
        """The part of the picture that the thing is in, in words."""
        return PLACES[self.y * 3 // SIZE][self.x * 3 // SIZE]

    @property
    def outline(self) -> tuple[tuple[float, float], ...]:
        """The corners of the thing's outline, in pixels."""
        a = 0.33
        if self.shape in ("circle", "ring"):
            turns = [math.pi * i / 16 for i in range(32)]
            corners = [(math.sin(t), -math.cos(t)) for t in turns]
        elif self.shape == "square":
            corners = [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]
        elif self.shape == "triangle":
            corners = [(0, -1), (1, 0.9), (-1, 0.9)]
        elif self.shape == "star":
            spans = [1 if i % 2 == 0 else 0.42 for i in range(10)]
            corners = [
                (s * math.sin(math.pi * i / 5), -s * math.cos(math.pi * i / 5))
                for i, s in enumerate(spans)
            ]
        else:  # cross
            quarter = [(-a, -1), (a, -1), (a, -a)]
            corners = quarter + [(-y, x) for x, y in quarter]
            corners += [(-x, -y) for x, y in corners]
        return tuple((self.x + self.radius * dx, self.y + self.radius * dy) for dx, dy in corners)

    def paint(self, draw: ImageDraw.ImageDraw) -> None:
        """Paint the thing."""
        fill = COLORS[self.color]
        x0, y0, x1, y1 = self.box
        if self.shape == "circle":
            draw.ellipse((x0, y0, x1 - 1, y1 - 1), fill=fill)
        elif self.shape == "ring":
            width = max(3, round(0.45 * self.radius))
            draw.ellipse((x0, y0, x1 - 1, y1 - 1), outline=fill, width=width)
        else:
            draw.polygon(self.outline, fill=fill)


class Sign(NamedTuple):
    """A two-digit number on a board."""

    text: str
    box: Box
    glyphs: tuple[Box, ...]

    @property
    def marks(self) -> tuple[Mark, ...]:
        """The parts of the sign and the words for them."""
        number = {"tens": self.text[0], "ones": f"##{self.text[1]}"}
        pairs = zip(self.glyphs, number.values(), strict=True)
        return tuple(Mark(box, {"name": digit, **number}) for box, digit in pairs)


@dataclass(frozen=True)
class Objects(Scene):
    """A picture of colored shapes and a sign."""

    things: tuple[Thing, ...]
    sign: Sign

    @classmethod
    def draw(cls, rng: np.random.Generator, few: bool = False) -> Self:
        image = background(rng)
        draw = ImageDraw.Draw(image)
        taken: list[Box] = []
        sign = _add_sign(rng, draw, taken)
        count = rng.integers(1, 4) if few else rng.integers(2, 6)
        things = add_things(rng, draw, count, (MIN_RADIUS, MAX_RADIUS), taken, _kinds(rng))
        return cls(image, things, sign)

    @property
    def marks(self) -> tuple[Mark, ...]:
        marks = []
        for thing in self.things:
            row, column = thing.y * 3 // SIZE, thing.x * 3 // SIZE
            words = {"name": thing.shape, "color": thing.color}
            words |= {"row": ("top", "center", "bottom")[row]}
            words |= {"column": ("left", "center", "right")[column]}
            marks.append(Mark(thing.outline, words))
        return (*marks, *self.sign.marks)

    @property
    def caption(self) -> str:
        """Shapes from left to right, and the sign."""
        names = [thing.name for thing in sorted(self.things, key=lambda t: t.x)]
        return ", ".join([*names, f"sign {self.sign.text}"])

    def truth(self) -> dict[str, Any]:
        things = [{**t._asdict(), "box": t.box} for t in self.things]
        return {"objects": things, "sign": self.sign._asdict()}


@dataclass(frozen=True)
class Crowd(Objects):
    """Many smaller things and several signs, of which nothing is asked: the tower learns more."""

    signs: tuple[Sign, ...]

    @classmethod
    def draw(cls, rng: np.random.Generator, few: bool = False) -> Self:
        image = background(rng)
        draw = ImageDraw.Draw(image)
        taken: list[Box] = []
        signs = tuple(_add_sign(rng, draw, taken) for _ in range(rng.integers(3, 6)))
        many, radii = rng.integers(7, 15), (MIN_RADIUS, MAX_RADIUS * 2 // 3)
        things = add_things(rng, draw, many, radii, taken, _kinds(rng))
        return cls(image, things, signs[0], signs[1:])

    @property
    def marks(self) -> tuple[Mark, ...]:
        return super().marks + tuple(mark for sign in self.signs for mark in sign.marks)


def _add_sign(rng: np.random.Generator, draw: ImageDraw.ImageDraw, taken: list[Box]) -> Sign:
    text = str(rng.integers(10, 100))
    face = font(rng, 16, 26)
    pad = 4
    width, height = (v + 2 * pad for v in extent(face, text))
    left, top = free_place(rng, taken, width, height)
    board, ink = PAPERS[int(rng.random() < 0.5)]
    draw.rectangle((left, top, left + width - 1, top + height - 1), fill=board, outline=ink)
    glyphs = write(draw, face, text, left + pad, top + pad, ink)
    taken.append((left, top, left + width, top + height))
    return Sign(text, taken[-1], glyphs)


def _kinds(rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    return (PAIRS[rng.choice(len(PAIRS), p=FREQUENCY)] for _ in count())


def add_things(
    rng: np.random.Generator,
    draw: ImageDraw.ImageDraw,
    count: int,
    radii: tuple[int, int],
    taken: list[Box],
    kinds: Iterator[tuple[str, str]],
) -> tuple[Thing, ...]:
    """Draw things of these radii where nothing is yet; what they cover is added to `taken`."""
    things: list[Thing] = []
    smallest, largest = radii
    for _ in range(count):
        radius = round(smallest * (largest / smallest) ** rng.random())
        while (place := free_place(rng, taken, *[2 * radius + 1] * 2)) is None:
            radius = max(smallest, radius * 2 // 3)
        color, shape = next(kinds)
        things.append(Thing(shape, color, place[0] + radius, place[1] + radius, radius))
        things[-1].paint(draw)
        taken.append(things[-1].box)
    return tuple(things)


def presence(scene: Objects, rng: np.random.Generator) -> Iterator[Question]:
    """Is there such a thing? As many yes as no; the no's are of POPE's three kinds: any pair, a
    popular pair, or (adversarial) a colour and a shape that are both there, on different things."""
    there = [(t.color, t.shape) for t in scene.things]
    distinct = list(dict.fromkeys(there))
    for color, shape in (distinct[i] for i in rng.permutation(len(distinct))[:3]):
        boxes = tuple(t.box for t in scene.things if (t.color, t.shape) == (color, shape))
        yield Question("presence", "there", f"is there a {color} {shape}?", "yes", boxes)
    mixed = {(c, s) for c, _ in there for _, s in there}
    pools = {
        "random": [p for p in PAIRS if p not in there],
        "popular": [p for p in POPULAR if p not in there],
        "adversarial": [p for p in PAIRS if p in mixed and p not in there],
    }
    for variant in rng.permutation(list(pools)).tolist()[: len(distinct)]:
        variant = variant if pools[variant] else "random"
        pool = pools[variant]
        color, shape = pool[rng.integers(len(pool))]
        yield Question("presence", variant, f"is there a {color} {shape}?", "no")


def attributes(scene: Objects, rng: np.random.Generator) -> Iterator[Question]:
    """Colour, shape and place of what the question names without doubt, and relations of two."""
    things = [scene.things[i] for i in rng.permutation(len(scene.things))]

    def unique(attribute: str) -> list[Thing]:
        values = [getattr(t, attribute) for t in things]
        return [t for t in things if values.count(getattr(t, attribute)) == 1]

    def ask(variant: str, text: str, answer: str, *about: Thing) -> Question:
        return Question("attributes", variant, text, answer, tuple(t.box for t in about))

    for t in unique("shape")[:3]:
        yield ask("color", f"what color is the {t.shape}?", t.color, t)
    for t in unique("color")[:3]:
        yield ask("shape", f"what shape is the {t.color} object?", t.shape, t)
    named = unique("name")
    for t in named[:3]:
        yield ask("place", f"where is the {t.name}?", t.place, t)
    for a, b in pairwise(named):
        if rng.random() < 0.5:
            a, b = b, a
        relation, gap = ("left of", b.x - a.x) if rng.random() < 0.5 else ("above", b.y - a.y)
        if abs(gap) > 20:
            answer = "yes" if gap > 0 else "no"
            yield ask("relation", f"is the {a.name} {relation} the {b.name}?", answer, a, b)


def counting(scene: Objects, rng: np.random.Generator) -> Iterator[Question]:
    """How many there are: of all, of a shape, of a colour. For the last two a number is drawn
    first, then what there is that often, so that the answer is hard to guess."""

    def ask(variant: str, plural: str, counted: list[Thing]) -> Question:
        text, boxes = f"how many {plural} are there?", tuple(t.box for t in counted)
        return Question("counting", variant, text, str(len(counted)), boxes)

    yield ask("all", "objects", list(scene.things))
    for variant, values in (("shape", SHAPES), ("color", tuple(COLORS))):
        groups = {v: [t for t in scene.things if getattr(t, variant) == v] for v in values}
        numbers = sorted({len(found) for found in groups.values()})
        number = numbers[rng.integers(len(numbers))]
        fitting = [v for v, found in groups.items() if len(found) == number]
        value = fitting[rng.integers(len(fitting))]
        plural = PLURALS[value] if variant == "shape" else f"{value} objects"
        yield ask(variant, plural, groups[value])


def reading(scene: Objects, rng: np.random.Generator) -> Iterator[Question]:
    """The number on the sign."""
    yield Question(
        "reading", "sign", "what number is on the sign?", scene.sign.text, scene.sign.glyphs
    )


FACTS = {
    "an animal": ("dog", "cat", "horse", "bird", "cow", "frog", "wolf", "goat"),
    "a fruit": ("apple", "pear", "plum", "grape", "lemon", "melon", "cherry", "peach"),
    "a tool": ("hammer", "saw", "drill", "axe", "file", "wrench", "spade", "pliers"),
    "a vehicle": ("car", "bus", "train", "boat", "bike", "truck", "plane", "tram"),
}
"""What knowledge questions rest on; nothing of it is ever drawn."""


def knowledge(scene: Objects, rng: np.random.Generator) -> Iterator[Question]:
    """Multiple choice, two of three questions answerable without looking."""

    def ask(variant: str, text: str, answer: str, others: list[str]) -> Question:
        choices = tuple(rng.permutation([answer, *others]).tolist())
        text = f"{text} {choices[0]}, {choices[1]} or {choices[2]}"
        return Question("knowledge", variant, text, answer, (), choices)

    def one(words: tuple[str, ...]) -> str:
        return words[rng.integers(len(words))]

    kinds = rng.permutation(list(FACTS)).tolist()
    yield ask(
        "fact", f"which is {kinds[0]}?", one(FACTS[kinds[0]]), [one(FACTS[k]) for k in kinds[1:3]]
    )
    numbers = sorted(rng.permutation(10)[:3].tolist())
    yield ask("number", "which number is largest?", str(numbers[2]), [str(n) for n in numbers[:2]])
    here = list(dict.fromkeys(t.shape for t in scene.things))
    absent = [s for s in SHAPES if s not in here]
    if len(absent) >= 2:
        there = here[rng.integers(len(here))]
        question = ask(
            "picture", "which is in the picture?", there, rng.permutation(absent)[:2].tolist()
        )
        yield question._replace(evidence=tuple(t.box for t in scene.things if t.shape == there))


GRAMMAR = (
    "is there a what color shape where the object objects how many are number on sign left of "
    "above yes no which largest in picture or"
)
WORDS = sorted(
    {
        *(word for group in FACTS.values() for word in group),
        *(word for kind in FACTS for word in kind.split()),
        *COLORS,
        *SHAPES,
        *PLURALS.values(),
        *(word for row in PLACES for place in row for word in place.split()),
        *GRAMMAR.split(),
    }
)
"""Every word of these questions, answers and captions, digits apart."""
