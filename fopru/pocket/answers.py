"""The closed sets that the answers to PocketBench's questions come from."""

from __future__ import annotations

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
