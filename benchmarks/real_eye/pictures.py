"""Photographs with their main object in boxes, and cut-out photographs put on photographs."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from real_eye.fetching import FOLDER

PATCH = 14
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

Box = tuple[float, float, float, float]

PHOTOGRAPHS: dict[str, tuple[Box, ...]] = {
    "skimage/astronaut.png": ((0.08, 0.02, 0.80, 1.0), (0.55, 0.68, 1.0, 1.0)),
    "skimage/coffee.png": ((0.03, 0.03, 0.95, 1.0),),
    "skimage/rocket.jpg": ((0.46, 0.29, 0.60, 1.0),),
    "skimage/camera.png": ((0.0, 0.12, 0.70, 1.0),),
    "skimage/motorcycle_left.png": ((0.0, 0.13, 1.0, 0.90),),
    "sklearn/china.jpg": ((0.0, 0.06, 0.62, 0.95),),
    "sklearn/flower.jpg": ((0.14, 0.19, 0.81, 0.84), (0.42, 0.88, 0.80, 1.0)),
    "mate/LadyBird.jpg": ((0.73, 0.43, 0.90, 0.60),),
    "mate/Aqua.jpg": ((0.56, 0.38, 1.0, 0.85),),
    "mate/Garden.jpg": ((0.25, 0.17, 1.0, 0.95),),
    "mate/TwoWings.jpg": ((0.26, 0.25, 1.0, 1.0),),
    "lomiri/free_by_Peter_Nerlich.jpg": ((0.17, 0.58, 0.70, 0.86),),
    "lomiri/Picture_0B_by_freespace.jpg": ((0.37, 0.36, 0.80, 0.75),),
    "lomiri/friends_by_Aitzol_Berasategi.jpg": ((0.30, 0.10, 0.52, 0.36), (0.46, 0.42, 0.67, 0.73)),
    "lomiri/seeding_by_Clements_Engelhardt.jpg": ((0.0, 0.10, 0.41, 0.56),),
}
"""The main object by hand: boxes (left, top, right, bottom) in shares of the centre square."""
BACKGROUNDS = (
    *(f"mate/{name}.jpg" for name in ("Blinds", "Dune", "GreenMeadow", "Storm", "Wood")),
    "lomiri/Dragonfly_by_Bolly.jpg",
    "lomiri/aitzgorri_by_Aitzol_Berasategi.jpg",
    "lomiri/life_by_Aitzol_Berasategi.jpg",
    "lomiri/sunset_by_Aitzol_Berasategi.jpg",
    "lomiri/analogpattern_by_Peter_Nerlich.jpg",
    "skimage/brick.png",
    "skimage/grass.png",
)
"""Photographs on which nothing stands out."""
HELD_OUT = (
    "mate/RainDrops.jpg",
    "lomiri/picosdeeuropa_by_Aitzol_Berasategi.jpg",
    "lomiri/Bridge_by_Sander_Klootwijk.jpg",
    "skimage/gravel.png",
)
"""Backgrounds that no training sees."""
FOLDERS = (
    *("animals", "food/fruit", "food/nuts", "food/vegetables", "household", "plants/flowers"),
    *("plants/mushrooms", "vehicles", "sports", "hobbies"),
)
"""Where the cut-outs lie that are photographs of things."""


@dataclass(frozen=True)
class Picture:
    """A square picture of (S, S) pixels, and what is on it."""

    name: str
    image: Image.Image
    shares: tuple[np.ndarray, ...]
    """Of each thing (S, S) float32: how much of each pixel it covers."""
    boxes: tuple[Box, ...] = field(default=(), kw_only=True)
    """Of each thing, in shares of the picture."""

    def at(self, size: int) -> tuple[Tensor, list[Tensor]]:
        """Pixels (1, 3, size, size) as the tower wants them, and of each thing (P,) bool: the
        patches of which it covers more than half."""
        image = self.image.resize((size, size), Image.Resampling.BICUBIC)
        return pixels([image]), self.masks(size // PATCH)

    def masks(self, side: int) -> list[Tensor]:
        small = (Image.fromarray(s).resize((side, side), Image.Resampling.BOX) for s in self.shares)
        return [torch.from_numpy(np.array(share)).flatten() > 0.5 for share in small]


def pixels(images: Sequence[Image.Image]) -> Tensor:
    """(B, 3, S, S), normalised as the tower was trained."""
    x = torch.stack([torch.from_numpy(np.array(i)).permute(2, 0, 1) / 255 for i in images])
    return (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


@cache
def find(name: str) -> Path:
    """The file of a picture, "package/file"."""
    package, file = name.split("/")
    found = sorted((FOLDER / "pictures" / package).rglob(file))
    if not found:
        raise FileNotFoundError(
            f"there is no {file} in {FOLDER / 'pictures' / package}: run `real_eye fetch` first."
        )
    return found[0]


def square(name: str, size: int = 518) -> Image.Image:
    """The centre square of a photograph, as LLaVA's processor cuts it."""
    image = Image.open(find(name)).convert("RGB")
    w, h = image.size
    m = min(w, h)
    box = ((w - m) // 2, (h - m) // 2, (w + m) // 2, (h + m) // 2)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)


def photographs(size: int = 518) -> Iterator[Picture]:
    """Each of `PHOTOGRAPHS`; all its boxes together are one thing."""
    places = (np.arange(size) + 0.5) / size
    for name, boxes in PHOTOGRAPHS.items():
        share = np.zeros((size, size), np.float32)
        for left, top, right, bottom in boxes:
            rows, columns = ((places > a) & (places < b) for a, b in ((top, bottom), (left, right)))
            share[np.ix_(rows, columns)] = 1
        yield Picture(name, square(name, size), (share,), boxes=boxes)


@cache
def cutouts(folders: tuple[str, ...] = FOLDERS) -> tuple[Path, ...]:
    """The cut-out photographs in these folders, without drawings and mirror images."""
    base = find("stamps/animals").parent
    found = [p for folder in folders for p in sorted((base / folder).rglob("*.png"))]
    mirrored = ("_mirror", "_flip")
    return tuple(p for p in found if "cartoon" not in p.parts and not p.stem.endswith(mirrored))


@cache
def cutout(path: Path) -> Image.Image:
    """A cut-out, cropped to what is not transparent, at most 320 pixels long.

    Raises:
        ValueError: the picture has no alpha channel.
    """
    image = Image.open(path)
    if "A" not in image.getbands() and "transparency" not in image.info:
        raise ValueError(f"{path} has no alpha channel, so that it is no cut-out.")
    image = image.convert("RGBA")
    image = image.crop(image.getchannel("A").getbbox())
    image.thumbnail((320, 320), Image.Resampling.LANCZOS)
    return image


@cache
def background(name: str) -> Image.Image:
    """A background, at most 1,400 pixels long."""
    image = Image.open(find(name)).convert("RGB")
    image.thumbnail((1400, 1400), Image.Resampling.LANCZOS)
    return image


def canvas(rng: random.Random, names: Sequence[str], size: int) -> Image.Image:
    """A random square of a random background, half of the time mirrored."""
    source = background(rng.choice(names))
    m = min(source.size) * rng.uniform(0.4, 1)
    x, y = (rng.uniform(0, s - m) for s in source.size)
    drawn = source.resize((size, size), Image.Resampling.BICUBIC, box=(x, y, x + m, y + m))
    mirror = Image.Transpose.FLIP_LEFT_RIGHT
    return drawn.transpose(mirror) if rng.random() < 0.5 else drawn


def put(
    rng: random.Random, drawn: Image.Image, path: Path, length: float
) -> tuple[Image.Image, np.ndarray, Box] | None:
    """The picture with one more cut-out in a random place, (S, S) of how much it covers, and its
    box in shares."""
    cut, size = cutout(path), drawn.size[0]
    if rng.random() < 0.5:
        cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    scale = length / max(cut.size)
    w, h = (max(8, round(s * scale)) for s in cut.size)
    cut = cut.resize((w, h), Image.Resampling.LANCZOS)
    x, y = rng.randrange(size - w + 1), rng.randrange(size - h + 1)
    share = np.zeros((size, size), np.float32)
    share[y : y + h, x : x + w] = np.array(cut.getchannel("A"), np.float32) / 255
    drawn = drawn.copy()
    drawn.paste(cut, (x, y), cut)
    return drawn, share, (x / size, y / size, (x + w) / size, (y + h) / size)


def composite(seed: int, n: int, size: int = 518) -> Picture:
    """n cut-outs that do not touch, on a background: each covers at least one patch at 224 pixels,
    and a hundredth of the picture."""
    rng = random.Random(seed)
    drawn, shares, boxes = canvas(rng, BACKGROUNDS + HELD_OUT, size), [], []
    while len(shares) < n:
        length = size * rng.uniform(0.25, 0.55 if n == 1 else 0.4)
        new, share, box = put(rng, drawn, rng.choice(cutouts()), length)
        covers = share > 0.5
        patches = Picture("", new, (share,)).masks(16)[0]
        if any((covers & (s > 0.5)).any() for s in shares):
            continue
        if covers.mean() < 0.01 or not patches.any():
            continue
        drawn = new
        shares.append(share)
        boxes.append(box)
    return Picture(f"{n} thing(s), seed {seed}", drawn, tuple(shares), boxes=tuple(boxes))
