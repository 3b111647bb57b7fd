"""Scenes for the pocket model: a seed makes a picture, what is on it, and questions about it.

A picture is 224 x 224. About half of them show coloured shapes and numbered signs on clutter; the
others are receipts, diagrams and bar charts. Each task is the small cousin of a public benchmark:
presence of POPE, attributes of GQA, counting of TallyQA, reading of TextVQA, documents of DocVQA,
diagrams of AI2D, charts of ChartQA, knowledge of ScienceQA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from fopru.pocket import diagrams, objects, papers, second
from fopru.pocket.diagrams import Diagram
from fopru.pocket.drawing import Question, Scene
from fopru.pocket.objects import Crowd, Objects
from fopru.pocket.papers import Chart, Receipt


class World(NamedTuple):
    """Which scenes there are, and what is asked about them."""

    kinds: dict[type[Scene], float]
    """With the share of each where none is asked for."""
    tasks: dict[str, tuple[type[Scene], Callable[..., Iterator[Question]]]]
    """Task -> the kind of scene that it asks about, and what it asks."""
    crowded: dict[type[Scene], type[Scene]]
    """Kind -> the one with much more on it, of which nothing is asked."""


WORLDS = {
    "first": World(
        {Objects: 0.5, Receipt: 0.16, Diagram: 0.18, Chart: 0.16},
        {
            "presence": (Objects, objects.presence),
            "attributes": (Objects, objects.attributes),
            "counting": (Objects, objects.counting),
            "reading": (Objects, objects.reading),
            "documents": (Receipt, papers.documents),
            "diagrams": (Diagram, diagrams.diagrams),
            "charts": (Chart, papers.charts),
            "knowledge": (Objects, objects.knowledge),
        },
        {Objects: Crowd},
    ),
    "second": World(
        {second.Busy: 0.44, second.Bill: 0.2, second.Plan: 0.2, second.Bars: 0.16},
        {
            "presence": (second.Busy, second.presence),
            "attributes": (second.Busy, objects.attributes),
            "counting": (second.Busy, objects.counting),
            "reading": (second.Busy, second.reading),
            "documents": (second.Bill, papers.documents),
            "diagrams": (second.Plan, diagrams.diagrams),
            "charts": (second.Bars, papers.charts),
            "knowledge": (second.Busy, objects.knowledge),
        },
        {second.Busy: second.Busier},
    ),
    "combinations": World(
        {second.NewBusy: 0.6, second.NewBill: 0.2, second.NewBars: 0.2},
        {
            "presence": (second.NewBusy, second.presence),
            "attributes": (second.NewBusy, objects.attributes),
            "reading": (second.NewBusy, second.reading),
            "documents": (second.NewBill, papers.documents),
            "charts": (second.NewBars, second.values),
        },
        {},
    ),
}
"""The pocket model is trained on the second world; "combinations" shows and asks only what that
training refuses. The first, easier world is what the weights in `data/pocket-first` know."""

KINDS, TASKS, _ = WORLDS["second"]

TRAINING, SAMPLES, TEST, VALIDATION, COMBINATIONS, HALLUCINATION = 0, 1, 4, 5, 6, 7
"""First entries of every scene's seed, so that no two of these uses share a scene; 2 and 3 were the
first world's test and validation."""

UNTRAINED = ("likely",)
"""Variants of question that no training asks."""

CAPTION = "what is in the picture?"
WORDS = sorted({*objects.WORDS, *papers.WORDS, *diagrams.WORDS, "nothing"})


def scene(
    seed: int | tuple[int, ...],
    kind: type[Scene] | None = None,
    few: bool = False,
    crowded: bool = False,
    world: str = "second",
) -> Scene:
    """The scene of a seed.

    Args:
        seed: anything that seeds `numpy.random.default_rng`.
        kind: one of the world's kinds; None draws one.
        few: with less on it than usual.
        crowded: where it would show objects, many more of them, of which nothing is asked.
        world: one of `WORLDS`.
    """
    kinds, _, crowds = WORLDS[world]
    rng = np.random.default_rng(seed)
    drawn = list(kinds)[rng.choice(len(kinds), p=list(kinds.values()))]
    kind = kind or drawn
    return (crowds.get(kind, kind) if crowded else kind).draw(rng, few)


def questions(scene: Scene, rng: np.random.Generator, task: str | None = None) -> list[Question]:
    """All questions about a scene, or those of one task."""
    return [
        question
        for world in WORLDS.values()
        for name, (kind, ask) in world.tasks.items()
        if type(scene) is kind and task in (None, name)
        for question in ask(scene, rng)
    ]
