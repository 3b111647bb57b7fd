"""Scenes for the pocket model: a seed makes a picture, what is on it, and questions about it.

A picture is 224 x 224. Half of them show coloured shapes and a numbered sign on clutter; the
others are receipts, diagrams and bar charts. Each task is the small cousin of a public benchmark:
presence of POPE, attributes of GQA, counting of TallyQA, reading of TextVQA, documents of DocVQA,
diagrams of AI2D, charts of ChartQA, knowledge of ScienceQA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from fopru.pocket import objects, papers
from fopru.pocket.drawing import Question, Scene
from fopru.pocket.objects import Crowd, Objects
from fopru.pocket.papers import Chart, Diagram, Receipt

KINDS: dict[type[Scene], float] = {Objects: 0.5, Receipt: 0.16, Diagram: 0.18, Chart: 0.16}
"""Kinds of scene, with the share of each where none is asked for."""

TASKS: dict[str, tuple[type[Scene], Callable[..., Iterator[Question]]]] = {
    "presence": (Objects, objects.presence),
    "attributes": (Objects, objects.attributes),
    "counting": (Objects, objects.counting),
    "reading": (Objects, objects.reading),
    "documents": (Receipt, papers.documents),
    "diagrams": (Diagram, papers.diagrams),
    "charts": (Chart, papers.charts),
    "knowledge": (Objects, objects.knowledge),
}
"""Task -> the kind of scene that it asks about, and what it asks."""

TRAINING, SAMPLES, TEST, VALIDATION = range(4)
"""First entries of every scene's seed, so that no two of these uses share a scene."""

CAPTION = "what is in the picture?"
WORDS = sorted({*objects.WORDS, *papers.WORDS, "nothing"})


def scene(
    seed: int | tuple[int, ...],
    kind: type[Scene] | None = None,
    few: bool = False,
    crowded: bool = False,
) -> Scene:
    """The scene of a seed.

    Args:
        seed: anything that seeds `numpy.random.default_rng`.
        kind: one of `KINDS`; None draws one.
        few: with less on it than usual.
        crowded: where it would show objects, many more of them, of which nothing is asked.
    """
    rng = np.random.default_rng(seed)
    drawn = list(KINDS)[rng.choice(len(KINDS), p=list(KINDS.values()))]
    kind = kind or drawn
    return (Crowd if crowded and kind is Objects else kind).draw(rng, few)


def questions(scene: Scene, rng: np.random.Generator, task: str | None = None) -> list[Question]:
    """All questions about a scene, or those of one task."""
    asked = TASKS.values() if task is None else (TASKS[task],)
    return [q for kind, ask in asked if type(scene) is kind for q in ask(scene, rng)]
