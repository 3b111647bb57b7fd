"""Receipts and bar charts, and the questions asked about them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from fopru.pocket.drawing import (
    COLORS,
    Box,
    Mark,
    Question,
    Scene,
    extent,
    font,
    hull,
    page,
    write,
)

ITEMS = (
    *("tea", "milk", "bread", "rice", "soap", "fish"),
    *("cake", "salt", "corn", "lamp", "rope", "seed"),
)
BARS = tuple(color for color in COLORS if color not in ("white", "black"))


def _number(text: str) -> dict[str, str]:
    return {"tens": text[0], "ones": f"##{text[1]}"}


def _digits(text: str, glyphs: tuple[Box, ...], **words: str) -> list[Mark]:
    pair = zip(glyphs, _number(text).values(), strict=True)
    return [Mark(box, {"name": digit, **words}) for box, digit in pair]


class Line(NamedTuple):
    """An item and its price, in one row."""

    item: str
    price: str
    item_box: Box
    glyphs: tuple[Box, ...]
    """The boxes of the price's digits."""

    @property
    def boxes(self) -> tuple[Box, ...]:
        """The boxes of the line's parts, in pixels."""
        return self.item_box, hull(self.glyphs)


@dataclass(frozen=True)
class Receipt(Scene):
    """A picture of a receipt."""

    lines: tuple[Line, ...]

    @classmethod
    def prices(cls, rng: np.random.Generator, items: list[int]) -> list[int]:
        """One for each item, all different."""
        return (10 + rng.permutation(90)[: len(items)]).tolist()

    @classmethod
    def price_left(cls, rng: np.random.Generator, item_end: int, column: int, few: bool) -> int:
        """Where a price begins, in pixels: all prices end in one column."""
        return column

    @classmethod
    def draw(cls, rng: np.random.Generator, few: bool = False) -> Self:
        image, draw, (x0, y0, x1, y1), ink = page(rng)
        face = font(rng, 15, 19)
        count = rng.integers(2, 4) if few else rng.integers(4, 7)
        pitch = (y1 - y0 - 12) / count
        left, right = x0 + rng.integers(5, 20), x1 - rng.integers(5, 20)
        ruled = rng.random() < 0.5
        lines = []
        items = rng.permutation(len(ITEMS))[:count].tolist()
        for i, (item, price) in enumerate(zip(items, cls.prices(rng, items), strict=True)):
            top = round(y0 + 6 + i * pitch + rng.uniform(0.1, 0.3) * (pitch - 14))
            word, text = ITEMS[item], str(price)
            box = hull(write(draw, face, word, int(left), top, ink))
            column = int(right) - extent(face, text)[0]
            glyphs = write(draw, face, text, cls.price_left(rng, box[2], column, few), top, ink)
            lines.append(Line(word, text, box, glyphs))
            if ruled and i:
                y = round(y0 + 4 + i * pitch)
                draw.line((x0 + 3, y, x1 - 4, y), fill=(140, 140, 140))
        return cls(image, tuple(lines))

    @property
    def marks(self) -> tuple[Mark, ...]:
        marks = []
        for line in self.lines:
            marks.append(Mark(line.item_box, {"name": line.item, **_number(line.price)}))
            marks += _digits(line.price, line.glyphs, to=line.item)
        return tuple(marks)

    @property
    def caption(self) -> str:
        return ", ".join(f"{line.item} {line.price}" for line in self.lines)

    def truth(self) -> dict[str, Any]:
        return {"lines": [line._asdict() for line in self.lines]}


def documents(scene: Receipt, rng: np.random.Generator) -> Iterator[Question]:
    """The price in the row of an item, and the item in the row of a price."""
    for line in scene.lines:
        text = f"what is the price of {line.item}?"
        yield Question("documents", "price", text, line.price, line.boxes)
    for line in scene.lines:
        text = f"which item costs {line.price}?"
        yield Question("documents", "item", text, line.item, line.boxes)


class Bar(NamedTuple):
    """One bar of a chart."""

    color: str
    value: str
    box: Box
    glyphs: tuple[Box, ...]
    """The boxes of the value's digits, above the bar."""


@dataclass(frozen=True)
class Chart(Scene):
    """A picture of a bar chart."""

    bars: tuple[Bar, ...]

    counts: ClassVar[tuple[tuple[int, int], tuple[int, int]]] = ((2, 4), (3, 6))
    """How many bars there are, the end excluded: with `few`, and as usual."""

    @classmethod
    def values(cls, rng: np.random.Generator, count: int) -> list[int]:
        """One for each bar, three or more apart."""
        return (10 + 6 * rng.permutation(15)[:count] + rng.integers(0, 4, count)).tolist()

    @classmethod
    def draw(cls, rng: np.random.Generator, few: bool = False) -> Self:
        image, draw, (x0, y0, x1, y1), ink = page(rng)
        count = int(rng.integers(*cls.counts[0 if few else 1]))
        face = font(rng, 15, 18)
        pitch = (x1 - x0 - 12) / count
        width = int(rng.uniform(0.45, 0.7) * min(pitch, 48))
        bottom, room = y1 - 10, y1 - y0 - 40
        scale = rng.uniform(0.75, 1) * room / 99
        colors = rng.permutation(len(BARS))[:count].tolist()
        bars = []
        for i, (color, value) in enumerate(zip(colors, cls.values(rng, count), strict=True)):
            left = round(x0 + 6 + (i + 0.5) * pitch - width / 2)
            box = (left, round(bottom - scale * value), left + width, bottom)
            draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=COLORS[BARS[color]])
            text = str(value)
            w, h = extent(face, text)
            glyphs = write(draw, face, text, (box[0] + box[2] - w) // 2, box[1] - h - 4, ink)
            bars.append(Bar(BARS[color], text, box, glyphs))
        draw.line((x0 + 4, bottom, x1 - 5, bottom), fill=ink, width=2)
        return cls(image, tuple(bars))

    @property
    def marks(self) -> tuple[Mark, ...]:
        marks = []
        for bar in self.bars:
            number = _number(bar.value)
            marks.append(Mark(bar.box, {"name": "bar", "color": bar.color, **number}))
            marks += _digits(bar.value, bar.glyphs, color=bar.color)
        return tuple(marks)

    @property
    def caption(self) -> str:
        return ", ".join(f"{bar.color} {bar.value}" for bar in self.bars)

    def truth(self) -> dict[str, Any]:
        return {"bars": [bar._asdict() for bar in self.bars]}


def charts(scene: Chart, rng: np.random.Generator) -> Iterator[Question]:
    """The value of a bar, the highest and the lowest bar, and which of two is higher."""
    for bar in scene.bars:
        text = f"what is the value of the {bar.color} bar?"
        yield Question("charts", "value", text, bar.value, (bar.box, hull(bar.glyphs)))
    ordered = sorted(scene.bars, key=lambda bar: int(bar.value))
    everything = tuple(hull((bar.box, *bar.glyphs)) for bar in scene.bars)
    for variant, bar in (("highest", ordered[-1]), ("lowest", ordered[0])):
        yield Question("charts", variant, f"which bar is {variant}?", bar.color, everything)


GRAMMAR = "what is the price of which item costs bar value highest lowest"
WORDS = sorted({*ITEMS, *COLORS, *GRAMMAR.split()})
"""Every word of these questions, answers and captions, digits apart."""
