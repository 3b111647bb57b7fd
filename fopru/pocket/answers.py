"""The closed sets that the answers to PocketBench's questions come from."""

from __future__ import annotations

import re

from fopru.pocket.drawing import COLORS
from fopru.pocket.objects import PLACES, SHAPES
from fopru.pocket.papers import BARS, ITEMS

_POLAR = ("yes", "no")
_NUMBERS = tuple(map(str, range(10, 100)))
_LONG = tuple(map(str, range(100, 1000)))
_COUNTS = tuple(map(str, range(10)))

_CLOSED = {
    ("presence", None): _POLAR,
    ("attributes", "color"): tuple(COLORS),
    ("attributes", "shape"): SHAPES,
    ("attributes", "place"): tuple(place for row in PLACES for place in row),
    ("attributes", "relation"): _POLAR,
    ("counting", None): _COUNTS,
    ("reading", "sign"): _NUMBERS,
    ("reading", "white"): _LONG,
    ("reading", "black"): _LONG,
    ("documents", "price"): _NUMBERS,
    ("documents", "item"): ITEMS,
    ("charts", "value"): _NUMBERS,
    ("charts", "highest"): BARS,
    ("charts", "lowest"): BARS,
}
"""Task and variant -> answers; a variant of None stands for all of a task. Questions of the other
tasks name their choices."""


def legal(task: str, variant: str) -> tuple[str, ...] | None:
    """All answers that a question of this kind may have; None where each names its own choices."""
    return _CLOSED.get((task, variant), _CLOSED.get((task, None)))


NAMED = r"(\w+), (\w+) or (\w+)\W*$"
"""What finds the choices that a question names."""

QUESTIONS = (
    (r"^is (there|the) ", _POLAR),
    (r"^what color ", tuple(COLORS)),
    (r"^what shape ", SHAPES),
    (r"^where is ", _CLOSED["attributes", "place"]),
    (r"^how many ", _COUNTS),
    (r"^what number is on the sign", _NUMBERS),
    (r"^what number is on the \w+ sign", _LONG),
    (r"^what is the (price|value) of ", _NUMBERS),
    (r"^which item costs ", ITEMS),
    (r"^which bar is ", BARS),
)
"""The same sets by how a question begins, for one whose task nobody names."""


def asked(question: str) -> tuple[str, ...] | None:
    """The legal answers of a question in words; None where it is none of PocketBench's kinds."""
    text = question.strip().lower()
    if named := re.search(NAMED, text):
        return named.groups()
    return next((answers for pattern, answers in QUESTIONS if re.search(pattern, text)), None)
