"""Scenes for the pocket model: a seed makes a picture, what is in it, and questions about it.

A picture is 224 x 224: a textured, cluttered background, a few coloured shapes from one patch to a
sixth of the picture, and a sign with a number. Everything is drawn from one numpy Generator, so a
seed gives the same pixels on every machine with the same Pillow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIZE = 224
COLORS = {
    "red": (210, 35, 40),
    "orange": (245, 135, 20),
    "yellow": (245, 225, 50),
    "green": (40, 150, 60),
    "blue": (40, 80, 200),
    "purple": (140, 50, 160),
    "white": (250, 250, 250),
    "black": (15, 15, 15),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
PLACES = (
    ("top left", "top", "top right"),
    ("left", "center", "right"),
    ("bottom left", "bottom", "bottom right"),
)
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSansMono-Bold")
MIN_RADIUS, MAX_RADIUS = 7, 45

Box = tuple[int, int, int, int]


class Thing(NamedTuple):
    """A coloured shape."""

    shape: str
    color: str
    x: int
    y: int
    radius: int

    @property
    def box(self) -> Box:
        r = self.radius
        return self.x - r, self.y - r, self.x + r + 1, self.y + r + 1

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"

    @property
    def place(self) -> str:
        return PLACES[self.y * 3 // SIZE][self.x * 3 // SIZE]


class Sign(NamedTuple):
    """A two-digit number on a board."""

    text: str
    box: Box
    glyphs: tuple[Box, ...]


@dataclass(frozen=True)
class Scene:
    image: Image.Image
    things: tuple[Thing, ...]
    sign: Sign

    def truth(self) -> dict:
        return {
            "objects": [{**t._asdict(), "box": t.box} for t in self.things],
            "sign": self.sign._asdict(),
        }


class Question(NamedTuple):
    task: str
    text: str
    answer: str
    evidence: tuple[Box, ...]


# Pictures


@lru_cache
def _textures() -> tuple[np.ndarray, ...]:
    """The pool of backgrounds: (2 * SIZE, 2 * SIZE, 3) uint8, muted and patchy."""
    rng = np.random.default_rng(20240924)
    pool = []
    for _ in range(24):
        base = rng.uniform(90, 165) + rng.uniform(-25, 25, 3)
        texture = np.zeros((2 * SIZE, 2 * SIZE, 3))
        for cells, strength in ((4, 22), (24, 14), (112, 10)):
            noise = rng.uniform(-strength, strength, (cells, cells, 3)).astype(np.float32)
            noise = noise.mean(2, keepdims=True) + 0.4 * noise
            for c in range(3):
                layer = Image.fromarray(noise[..., c])
                texture[..., c] += np.asarray(layer.resize((2 * SIZE, 2 * SIZE), Image.BICUBIC))
        pool.append(np.clip(texture + base, 40, 215).astype(np.uint8))
    return tuple(pool)


@lru_cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    return ImageFont.truetype(folder / f"{name}.ttf", size)


def _background(rng: np.random.Generator) -> Image.Image:
    textures = _textures()
    texture = textures[rng.integers(len(textures))]
    x, y = rng.integers(0, SIZE, 2)
    image = Image.fromarray(texture[y : y + SIZE, x : x + SIZE])
    draw = ImageDraw.Draw(image)
    for x, y, angle, length, shade in rng.uniform(0, 1, (rng.integers(4, 12), 5)):  # clutter
        dx, dy = (30 * length * f(2 * math.pi * angle) for f in (math.cos, math.sin))
        x, y = SIZE * x, SIZE * y
        draw.line([x, y, x + dx, y + dy], fill=(int(60 + 130 * shade),) * 3, width=2)
    return image


def _outline(thing: Thing) -> list[tuple[float, float]]:
    """Corners of the shapes that are polygons."""
    x, y, r = thing.x, thing.y, thing.radius
    if thing.shape == "square":
        corners = [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]
    elif thing.shape == "triangle":
        corners = [(0, -1), (1, 0.9), (-1, 0.9)]
    elif thing.shape == "star":
        turns = [math.pi * i / 5 for i in range(10)]
        spans = [1 if i % 2 == 0 else 0.42 for i in range(10)]
        pairs = zip(turns, spans, strict=True)
        corners = [(s * math.sin(t), -s * math.cos(t)) for t, s in pairs]
    else:  # cross
        a = 0.33
        corners = [
            (-a, -1),
            (a, -1),
            (a, -a),
            (1, -a),
            (1, a),
            (a, a),
            (a, 1),
            (-a, 1),
            (-a, a),
            (-1, a),
            (-1, -a),
            (-a, -a),
        ]
    return [(x + r * dx, y + r * dy) for dx, dy in corners]


def paint(thing: Thing, draw: ImageDraw.ImageDraw, fill) -> None:
    """Draw a thing in a given colour (or, on a label map, a given label)."""
    x0, y0, x1, y1 = thing.box
    box = (x0, y0, x1 - 1, y1 - 1)
    if thing.shape == "circle":
        draw.ellipse(box, fill=fill)
    elif thing.shape == "ring":
        draw.ellipse(box, outline=fill, width=max(3, round(0.45 * thing.radius)))
    else:
        draw.polygon(_outline(thing), fill=fill)


def _free_place(rng, taken: list[Box], width: int, height: int) -> tuple[int, int] | None:
    """A top-left corner whose box stays clear of those taken, if thirty tries find one."""
    for x, y in rng.integers(0, (SIZE - width, SIZE - height), (30, 2)).tolist():
        if all(
            x + width + 2 < a or c + 2 < x or y + height + 2 < b or d + 2 < y
            for a, b, c, d in taken
        ):
            return x, y
    return None


def _add_sign(rng, image: Image.Image) -> Sign:
    text = str(rng.integers(10, 100))
    font = _font(FONTS[rng.integers(len(FONTS))], int(rng.integers(16, 27)))
    x0, y0, x1, y1 = (math.ceil(v) for v in font.getbbox(text))
    pad = 4
    width, height = x1 - x0 + 2 * pad, y1 - y0 + 2 * pad
    left, top = rng.integers(0, (SIZE - width, SIZE - height)).tolist()
    board, ink = (
        ((245, 240, 220), (20, 20, 20)) if rng.random() < 0.5 else ((30, 40, 50), (240, 240, 230))
    )
    draw = ImageDraw.Draw(image)
    draw.rectangle((left, top, left + width - 1, top + height - 1), fill=board, outline=ink)
    draw.text((left + pad - x0, top + pad - y0), text, fill=ink, font=font)
    middle = left + pad - x0 + round(font.getlength(text[0]))
    rows = (top + pad, top + height - pad)
    glyphs = (
        (left + pad, rows[0], middle, rows[1]),
        (middle, rows[0], left + width - pad, rows[1]),
    )
    return Sign(text, (left, top, left + width, top + height), glyphs)


def scene(seed: int | tuple[int, ...], objects: tuple[int, int] = (2, 5)) -> Scene:
    """The scene of a seed.

    Args:
        seed: anything that seeds `numpy.random.default_rng`.
        objects: least and largest number of shapes.
    """
    rng = np.random.default_rng(seed)
    image = _background(rng)
    sign = _add_sign(rng, image)
    draw = ImageDraw.Draw(image)
    things: list[Thing] = []
    for _ in range(rng.integers(objects[0], objects[1] + 1)):
        radius = round(MIN_RADIUS * (MAX_RADIUS / MIN_RADIUS) ** rng.random())
        taken = [sign.box, *(thing.box for thing in things)]
        while (place := _free_place(rng, taken, 2 * radius + 1, 2 * radius + 1)) is None:
            radius = max(MIN_RADIUS, radius * 2 // 3)
        shape = SHAPES[rng.integers(len(SHAPES))]
        color = tuple(COLORS)[rng.integers(len(COLORS))]
        things.append(Thing(shape, color, place[0] + radius, place[1] + radius, radius))
        paint(things[-1], draw, COLORS[color])
    return Scene(image, tuple(things), sign)


# Questions: one generator function per task


def presence(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    """Is there such a thing? As many yes as no; the no's are drawn at random, or recombine a colour
    and a shape that are both there (POPE's adversarial kind)."""
    there = {(t.color, t.shape): t for t in scene.things}
    picked = rng.permutation(len(there))[:2]
    for color, shape in (list(there)[i] for i in picked):
        boxes = tuple(t.box for t in scene.things if (t.color, t.shape) == (color, shape))
        yield Question("presence", f"is there a {color} {shape}?", "yes", boxes)
    everywhere = [(c, s) for c in COLORS for s in SHAPES]
    mixed = [
        (c, s)
        for c in {t.color: 0 for t in scene.things}
        for s in {t.shape: 0 for t in scene.things}
        if (c, s) not in there
    ]
    for _ in picked:
        pool = mixed if mixed and rng.random() < 0.5 else [p for p in everywhere if p not in there]
        color, shape = pool[rng.integers(len(pool))]
        yield Question("presence", f"is there a {color} {shape}?", "no", ())


def attributes(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    """Colour, shape and place of what the question names without doubt, and relations of two."""
    things = [scene.things[i] for i in rng.permutation(len(scene.things))]

    def unique(attribute: str) -> list[Thing]:
        values = [getattr(t, attribute) for t in things]
        return [t for t in things if values.count(getattr(t, attribute)) == 1][:3]

    for t in unique("shape"):
        yield Question("attributes", f"what color is the {t.shape}?", t.color, (t.box,))
    for t in unique("color"):
        yield Question("attributes", f"what shape is the {t.color} object?", t.shape, (t.box,))
    named = unique("name")
    for t in named:
        yield Question("attributes", f"where is the {t.name}?", t.place, (t.box,))
    for a, b in pairwise(named):
        if rng.random() < 0.5:
            a, b = b, a
        relation, gap = ("left of", b.x - a.x) if rng.random() < 0.5 else ("above", b.y - a.y)
        if abs(gap) > 20:
            answer = "yes" if gap > 0 else "no"
            text = f"is the {a.name} {relation} the {b.name}?"
            yield Question("attributes", text, answer, (a.box, b.box))


def counting(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    """How many there are: of all, of a shape, of a colour; the last two seldom of none."""

    def ask(plural: str, counted: list[Thing]) -> Question:
        text = f"how many {plural} are there?"
        return Question("counting", text, str(len(counted)), tuple(t.box for t in counted))

    yield ask("objects", list(scene.things))
    some = scene.things[rng.integers(len(scene.things))]
    shape = some.shape if rng.random() < 0.8 else SHAPES[rng.integers(len(SHAPES))]
    plural = "crosses" if shape == "cross" else f"{shape}s"
    yield ask(plural, [t for t in scene.things if t.shape == shape])
    color = some.color if rng.random() < 0.8 else tuple(COLORS)[rng.integers(len(COLORS))]
    yield ask(f"{color} objects", [t for t in scene.things if t.color == color])


def reading(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    """The number on the sign."""
    yield Question("reading", "what number is on the sign?", scene.sign.text, scene.sign.glyphs)


TASKS: dict[str, Callable[[Scene, np.random.Generator], Iterator[Question]]] = {
    "presence": presence,
    "attributes": attributes,
    "counting": counting,
    "reading": reading,
}

GRAMMAR = (
    "is there a what color shape where the object objects how many are number on sign left of "
    "above yes no"
)
WORDS = sorted(
    {*COLORS, *SHAPES, *(f"{s}s" for s in SHAPES if s != "cross"), "crosses", *GRAMMAR.split()}
    | {word for row in PLACES for place in row for word in place.split()}
)
"""Every word that questions and answers are made of, digits apart."""


def questions(scene: Scene, rng: np.random.Generator, task: str | None = None) -> list[Question]:
    """All questions about a scene, or those of one task."""
    tasks = TASKS if task is None else (task,)
    return [question for name in tasks for question in TASKS[name](scene, rng)]
