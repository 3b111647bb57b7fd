"""What all scenes share: size, backgrounds, text, and the records of what is there.

Everything is drawn from one numpy Generator, so a seed gives the same pixels on every machine with
the same Pillow and matplotlib (whose DejaVu fonts are used).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Self

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIZE = 224
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSansMono-Bold")
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
PAPERS = (((245, 240, 220), (20, 20, 20)), ((30, 40, 50), (240, 240, 230)))
"""Colours of a board or page and of the ink on it."""

Box = tuple[int, int, int, int]


class Mark(NamedTuple):
    """A part of the picture and the words for it, by slot (`SLOTS` in `data/making/targets.py`)."""

    outline: Box | tuple[tuple[float, float], ...]
    """A box, or the corners of a polygon."""
    words: dict[str, str]

    def paint(self, draw: ImageDraw.ImageDraw, fill: Any) -> None:
        """Paint the part of the picture in one colour or value."""
        if isinstance(self.outline[0], tuple):
            draw.polygon(self.outline, fill=fill)
        else:
            x0, y0, x1, y1 = self.outline
            draw.rectangle((x0, y0, x1 - 1, y1 - 1), fill=fill)


class Question(NamedTuple):
    """A question about a scene, with its answer and what the answer rests on."""

    task: str
    variant: str
    """What kind of question within the task, as "color" or "adversarial"."""
    text: str
    answer: str
    evidence: tuple[Box, ...] = ()
    choices: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Scene(ABC):
    """A picture and what is on it."""

    image: Image.Image = field(repr=False)

    @classmethod
    @abstractmethod
    def draw(cls, rng: np.random.Generator, few: bool = False) -> Self:
        """A random scene; `few` for one with less on it, to learn from first."""

    @property
    @abstractmethod
    def marks(self) -> tuple[Mark, ...]:
        """What is where; later ones lie on top."""

    @property
    @abstractmethod
    def caption(self) -> str:
        """All of it in words."""

    def truth(self) -> dict[str, Any]:
        """Ground truth as plain data, the picture left out."""
        return {name: value for name, value in vars(self).items() if name != "image"}


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


def background(rng: np.random.Generator) -> Image.Image:
    """A piece of texture with clutter on it."""
    textures = _textures()
    texture = textures[rng.integers(len(textures))]
    x, y = rng.integers(0, SIZE, 2)
    image = Image.fromarray(texture[y : y + SIZE, x : x + SIZE])
    draw = ImageDraw.Draw(image)
    for x, y, angle, length, shade in rng.uniform(0, 1, (rng.integers(4, 12), 5)):
        dx, dy = (30 * length * f(2 * math.pi * angle) for f in (math.cos, math.sin))
        x, y = SIZE * x, SIZE * y
        draw.line([x, y, x + dx, y + dy], fill=(int(60 + 130 * shade),) * 3, width=2)
    return image


def page(rng: np.random.Generator) -> tuple[Image.Image, ImageDraw.ImageDraw, Box, tuple]:
    """A sheet of paper on a background: picture, pen, the sheet's box, and its ink."""
    image = background(rng)
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = rng.integers(3, 14, 4).tolist()
    paper, ink = PAPERS[int(rng.random() < 0.3)]
    box = (left, top, SIZE - right, SIZE - bottom)
    draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=paper)
    return image, draw, box, ink


@lru_cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    return ImageFont.truetype(folder / f"{name}.ttf", size)


def font(rng: np.random.Generator, smallest: int, largest: int) -> ImageFont.FreeTypeFont:
    """A random face of a random height in pixels."""
    return _font(FONTS[rng.integers(len(FONTS))], int(rng.integers(smallest, largest + 1)))


def extent(face: ImageFont.FreeTypeFont, text: str) -> tuple[int, int]:
    """Width and height of a text's ink in pixels."""
    x0, y0, x1, y1 = (math.ceil(v) for v in face.getbbox(text))
    return x1 - x0, y1 - y0


def write(
    draw: ImageDraw.ImageDraw, face: ImageFont.FreeTypeFont, text: str, x: int, y: int, ink: tuple
) -> tuple[Box, ...]:
    """Write with the ink's upper left corner at (x, y); the boxes of its letters."""
    x0, y0, _, _ = (math.ceil(v) for v in face.getbbox(text))
    width, height = extent(face, text)
    draw.text((x - x0, y - y0), text, fill=ink, font=face)
    edges = [x, *(x - x0 + round(face.getlength(text[:i])) for i in range(1, len(text)))]
    edges.append(x + width)
    return tuple((edges[i], y, edges[i + 1], y + height) for i in range(len(text)))


def hull(boxes: tuple[Box, ...]) -> Box:
    """The smallest box around boxes."""
    x0, y0, x1, y1 = zip(*boxes, strict=True)
    return min(x0), min(y0), max(x1), max(y1)


def free_place(
    rng: np.random.Generator, taken: list[Box], width: int, height: int
) -> tuple[int, int] | None:
    """A top-left corner whose box stays clear of those taken, if thirty tries find one."""
    for x, y in rng.integers(0, (SIZE - width, SIZE - height), (30, 2)).tolist():
        if all(
            x + width + 2 < a or c + 2 < x or y + height + 2 < b or d + 2 < y
            for a, b, c, d in taken
        ):
            return x, y
    return None
