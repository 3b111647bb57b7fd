"""Composed scenes and the questions about them: drawn from a seed, with held-out things.

Nothing here is a natural scene or a natural question: cut-out photographs and printed signs on
photographs, asked about in a closed language.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fopru.evaluation import Example
from real_eye.pictures import BACKGROUNDS, HELD_OUT, PATCH, canvas, cutouts, put

SIZE = 224
KINDS = {
    "bird": ("animals/birds",),
    "fish": ("animals/fish",),
    "flower": ("plants/flowers",),
    "fruit": ("food/fruit",),
    "insect": ("animals/insects",),
    "instrument": ("hobbies/music",),
    "mammal": ("animals/mammals",),
    "tool": ("household/tools", "household/arttools"),
    "vegetable": ("food/vegetables",),
    "vehicle": ("vehicles",),
}
"""What there can be, and the folders of its cut-outs."""
NUMBERS = ("one", "two", "three", "four")
PRINTED = (
    *("bank", "bread", "east", "exit", "gold", "milk", "open", "park"),
    *("road", "sale", "salt", "ship", "stop", "taxi", "west", "wine"),
)
SIDES = {
    "on the left": (0, 1),
    "on the right": (0, -1),
    "at the top": (1, 1),
    "at the bottom": (1, -1),
}
FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSerif"),
    *("DejaVuSerif-Bold", "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralBol", "cmr10", "cmss10"),
)
"""Fonts that come with matplotlib."""
UNSEEN_FONTS = ("DejaVuSansMono-Bold", "STIXGeneralItalic", "cmtt10", "cmb10")
PARTS = ("train", "known", "unseen")
"""Scenes to learn from; other scenes of the same cut-outs, backgrounds and fonts; and scenes of
those that no training saw."""
LABELS = ("nothing", *KINDS, *PRINTED)
"""What a patch can be told that it shows."""
IGNORE = -100
TASKS = ("presence", "counting", "naming", "place", "reading")
CHOICES: dict[str, tuple[str, ...]] = {
    "presence": ("yes", "no"),
    "counting": NUMBERS,
    "naming": tuple(KINDS),
    "place": tuple(KINDS),
    "side": ("left", "right"),
    "reading": PRINTED,
}
"""Task, or variant of a task -> its legal answers."""
WORDS = tuple(
    dict.fromkeys(
        (
            *(*LABELS, *NUMBERS, "yes", "no", "left", "right", "top", "bottom", "where"),
            *("is", "there", "a", "how", "many", "things", "are", "what", "on", "at", "the"),
            *("written",),
        )
    )
)

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Asked:
    """One question."""

    task: str
    variant: str
    question: str
    answer: str
    evidence: tuple[Box, ...]

    @property
    def choices(self) -> tuple[str, ...]:
        """The legal answers."""
        return CHOICES["side" if self.variant == "side" else self.task]


@dataclass(frozen=True)
class Scene:
    """A picture, the things on it with their boxes in pixels, the printed word, and of each patch
    its place in `LABELS`."""

    image: Image.Image
    things: tuple[tuple[str, Box], ...]
    sign: tuple[str, Box] | None
    labels: np.ndarray


@cache
def things(kind: str, unseen: bool) -> tuple[Path, ...]:
    """The cut-outs of a kind: four of five are learned from, the fifth is held out."""
    found = cutouts(KINDS[kind])
    return tuple(path for i, path in enumerate(found) if (i % 5 == 2) == unseen)


def scene(part: str, seed: int) -> Scene:
    """One to four things that do not touch, and on every other picture a printed word."""
    rng, unseen = random.Random(f"{part} {seed}"), part == "unseen"
    image = canvas(rng, HELD_OUT if unseen else BACKGROUNDS, SIZE)
    labels = np.zeros((SIZE // PATCH) ** 2, np.int64)
    taken: list[Box] = []
    sign = None
    if rng.random() < 0.5:
        word, names = rng.choice(PRINTED), UNSEEN_FONTS if unseen else FONTS
        image, box = _print(rng, image, word, rng.choice(names))
        sign = word, box
        _label(labels, _filled(box), LABELS.index(word))
        taken.append(box)
    wanted, there = rng.randint(1, 4), []
    for _ in range(80):
        if len(there) == wanted:
            break
        kind = rng.choice(tuple(KINDS))
        new, share, place = put(rng, image, rng.choice(things(kind, unseen)), rng.uniform(50, 90))
        box = tuple(round(SIZE * x) for x in place)
        if any(_near(box, other) for other in taken):
            continue
        image = new
        taken.append(box)
        there.append((kind, box))
        _label(labels, share, LABELS.index(kind))
    return Scene(image, tuple(there), sign, labels)


def _near(one: Box, other: Box, gap: int = 4) -> bool:
    return all(one[i] < other[i + 2] + gap and other[i] < one[i + 2] + gap for i in (0, 1))


def _filled(box: Box) -> np.ndarray:
    share = np.zeros((SIZE, SIZE), np.float32)
    share[box[1] : box[3], box[0] : box[2]] = 1
    return share


def _label(labels: np.ndarray, share: np.ndarray, label: int) -> None:
    """Tell patches that a thing covers by a third; those that it touches are ignored."""
    side = SIZE // PATCH
    covered = share.reshape(side, PATCH, side, PATCH).mean((1, 3)).reshape(-1)
    labels[(covered > 0.02) & (labels == 0)] = IGNORE
    labels[covered > 0.33] = label


def _print(rng: random.Random, image: Image.Image, word: str, font: str) -> tuple[Image.Image, Box]:
    """The picture with a word on a plate, dark on light or light on dark."""
    file = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{font}.ttf")
    face = ImageFont.truetype(file, rng.randint(36, 46))
    text = word.upper() if rng.random() < 0.5 else word
    left, top, right, bottom = face.getbbox(text)
    w, h = right - left + rng.randint(8, 16), bottom - top + rng.randint(8, 14)
    x, y = rng.randrange(SIZE - w + 1), rng.randrange(SIZE - h + 1)
    ink, plate = (tuple(rng.randint(a, b) for _ in range(3)) for a, b in ((0, 80), (170, 255)))
    if rng.random() < 0.5:
        ink, plate = plate, ink
    image = image.copy()
    draw = ImageDraw.Draw(image)
    draw.rectangle((x, y, x + w - 1, y + h - 1), fill=plate)
    draw.text(
        (x + (w - right + left) / 2 - left, y + (h - bottom + top) / 2 - top), text, ink, face
    )
    return image, (x, y, x + w, y + h)


def questions(scene: Scene, rng: random.Random) -> list[Asked]:
    """Every question that the scene allows, of each kind one or two."""
    kinds, boxes = [kind for kind, _ in scene.things], [box for _, box in scene.things]
    middles = [((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for b in boxes]
    yes, no = rng.choice(kinds), rng.choice([kind for kind in KINDS if kind not in kinds])
    where = tuple(box for kind, box in scene.things if kind == yes)
    asked = [
        Asked("presence", "yes", f"is there a {yes}?", "yes", where),
        Asked("presence", "no", f"is there a {no}?", "no", ()),
        Asked(
            "counting", "all", "how many things are there?", NUMBERS[len(kinds) - 1], tuple(boxes)
        ),
    ]
    if len(kinds) == 1:
        asked.append(Asked("naming", "alone", "what is there?", kinds[0], tuple(boxes)))
    else:
        sides = []
        for words, (axis, sign) in SIDES.items():
            first, second, *_ = sorted(range(len(kinds)), key=lambda i: sign * middles[i][axis])
            if abs(middles[first][axis] - middles[second][axis]) > 2 * PATCH:
                told = kinds[first], (boxes[first],)
                sides.append(Asked("place", "first", f"what is {words}?", *told))
        asked += rng.sample(sides, min(2, len(sides)))
    alone = [i for i, kind in enumerate(kinds) if kinds.count(kind) == 1]
    alone = [i for i in alone if abs(middles[i][0] - SIZE / 2) > PATCH]
    if alone:
        i = rng.choice(alone)
        side = "left" if middles[i][0] < SIZE / 2 else "right"
        asked.append(Asked("place", "side", f"where is the {kinds[i]}?", side, (boxes[i],)))
    if scene.sign is not None:
        word, box = scene.sign
        asked.append(Asked("reading", "sign", "what is written?", word, (box,)))
    return asked


def examples(part: str, seeds: Sequence[int]) -> list[Example]:
    """The questions about these scenes, for `fopru.evaluate`."""
    found = []
    for seed in seeds:
        made = scene(part, seed)
        told = {"image_id": f"{part}-{seed}", "part": part}
        for i, q in enumerate(questions(made, random.Random(f"questions {part} {seed}"))):
            found.append(
                Example(
                    f"{part}-{seed}-{i}",
                    q.task,
                    made.image,
                    q.question,
                    q.answer,
                    choices=q.choices,
                    evidence=q.evidence,
                    scene={**told, "variant": q.variant},
                )
            )
    return found
