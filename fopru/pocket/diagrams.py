"""Diagrams of boxes and arrows, and the questions asked about them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from fopru.pocket.drawing import Box, Mark, Question, Scene, extent, font, page, write

LETTERS = tuple("bcdefghk")
GRAMMAR = "what does point to points or arrow"
WORDS = sorted({*LETTERS, *GRAMMAR.split()})
"""Every word of these questions, answers and captions."""


class Arrow(NamedTuple):
    """From one box to another, by their letters."""

    source: str
    target: str
    start: tuple[int, int]
    end: tuple[int, int]

    @property
    def box(self) -> Box:
        """The box around the arrow, in pixels."""
        (a, b), (c, d) = self.start, self.end
        return min(a, c) - 2, min(b, d) - 2, max(a, c) + 3, max(b, d) + 3

    def strip(self, width: float) -> tuple[tuple[float, float], ...]:
        """The corners of the arrow's line at this width, in pixels."""
        (a, b), (c, d) = self.start, self.end
        length = math.hypot(c - a, d - b)
        x, y = width / 2 * (b - d) / length, width / 2 * (c - a) / length
        return (a + x, b + y), (c + x, d + y), (c - x, d - y), (a - x, b - y)

    def point(self, length: int, half: int) -> tuple[tuple[float, float], ...]:
        """Corners of its head: its length, and half its width."""
        (a, b), (c, d) = self.start, self.end
        whole = math.hypot(c - a, d - b)
        x, y = (c - a) / whole, (d - b) / whole
        back = (c - length * x, d - length * y)
        return (
            (c, d),
            (back[0] - half * y, back[1] + half * x),
            (back[0] + half * y, back[1] - half * x),
        )


@dataclass(frozen=True)
class Diagram(Scene):
    """A picture of boxes with letters, and arrows between them."""

    boxes: dict[str, Box]
    """By letter."""
    arrows: tuple[Arrow, ...]

    head: ClassVar[tuple[int, int]] = (10, 6)
    """Length and half the width of an arrow's head."""

    @classmethod
    def draw(cls, rng: np.random.Generator, few: bool = False) -> Self:
        image, draw, (x0, y0, x1, y1), ink = page(rng)
        count = int(rng.integers(3, 5) if few else rng.integers(4, 7))
        face = font(rng, 17, 22)
        side = int(rng.integers(30, 37))
        letters = [LETTERS[i] for i in rng.permutation(len(LETTERS))[:count]]
        links: list[tuple[int, int]] = []
        while len(links) < 2:
            cells = [divmod(int(i), 3) for i in rng.permutation(9)[:count]]
            links = _links(rng, cells)
        boxes = {}
        for letter, (row, column) in zip(letters, cells, strict=True):
            x = round(x0 + (column + 0.5) * (x1 - x0) / 3 - side / 2 + rng.uniform(-6, 6))
            y = round(y0 + (row + 0.5) * (y1 - y0) / 3 - side / 2 + rng.uniform(-6, 6))
            boxes[letter] = (x, y, x + side, y + side)
        arrows = []
        for i, j in links:
            arrow = _arrow(letters[i], letters[j], boxes)
            arrows.append(arrow)
            draw.line((*arrow.start, *arrow.end), fill=ink, width=3)
            draw.polygon(arrow.point(*cls.head), fill=ink)
        round_boxes = rng.random() < 0.5
        for letter, (a, b, c, d) in boxes.items():
            radius = side // 3 if round_boxes else 0
            draw.rounded_rectangle((a, b, c - 1, d - 1), radius, outline=ink, width=2)
            width, height = extent(face, letter.upper())
            write(draw, face, letter.upper(), (a + c - width) // 2, (b + d - height) // 2, ink)
        return cls(image, boxes, tuple(arrows))

    @property
    def marks(self) -> tuple[Mark, ...]:
        marks = [Mark(a.strip(7), {"name": "arrow", "to": a.target}) for a in self.arrows]
        targets = {a.source: {"to": a.target} for a in self.arrows}
        for letter, box in self.boxes.items():
            marks.append(Mark(box, {"name": letter, **targets.get(letter, {})}))
        return tuple(marks)

    @property
    def caption(self) -> str:
        return ", ".join(f"{a.source} to {a.target}" for a in sorted(self.arrows))

    def truth(self) -> dict[str, Any]:
        return {"boxes": self.boxes, "arrows": [a._asdict() for a in self.arrows]}


def _links(rng: np.random.Generator, cells: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Arrows between neighbouring cells: at most one from each and between two, none crossing."""
    pairs = list(permutations(range(len(cells)), 2))
    links: list[tuple[int, int]] = []
    for i, j in (pairs[n] for n in rng.permutation(len(pairs))):
        (a, b), (c, d) = cells[i], cells[j]
        near = max(abs(a - c), abs(b - d)) == 1
        middle = (a + c, b + d)  # crossing diagonals share it, and nothing else does
        free = all(
            k != i
            and {k, m} != {i, j}
            and middle != (cells[k][0] + cells[m][0], cells[k][1] + cells[m][1])
            for k, m in links
        )
        if near and free and rng.random() < 0.85:
            links.append((i, j))
    return links


def _arrow(source: str, target: str, boxes: dict[str, Box]) -> Arrow:
    """From border to border, a little apart from both."""
    middles = []
    for letter in (source, target):
        x0, y0, x1, y1 = boxes[letter]
        middles.append(((x0 + x1) / 2, (y0 + y1) / 2))
    (a, b), (c, d) = middles
    side = boxes[source][2] - boxes[source][0]
    out = (side / 2 + 3) / max(abs(c - a), abs(d - b))
    start = round(a + out * (c - a)), round(b + out * (d - b))
    end = round(c - out * (c - a)), round(d - out * (d - b))
    return Arrow(source, target, start, end)


def diagrams(scene: Diagram, rng: np.random.Generator) -> Iterator[Question]:
    """What a box points to, and what points to it, of three."""
    for variant, text in (("target", "what does {} point to?"), ("source", "what points to {}?")):
        for arrow in scene.arrows:
            ends = (arrow.source, arrow.target)
            asked, answer = ends if variant == "target" else ends[::-1]
            if variant == "source" and sum(a.target == asked for a in scene.arrows) > 1:
                continue
            others = [letter for letter in scene.boxes if letter not in ends]
            others = rng.permutation(others).tolist()[:2]
            if len(others) < 2:
                others += [x for x in LETTERS if x not in scene.boxes][: 2 - len(others)]
            choices = tuple(rng.permutation([answer, *others]).tolist())
            yield Question(
                "diagrams",
                variant,
                f"{text.format(asked)} {choices[0]}, {choices[1]} or {choices[2]}",
                answer,
                (scene.boxes[asked], arrow.box, scene.boxes[answer]),
                choices,
            )
