"""Questions on fresh scenes, and where the shipped files are."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fopru.arguments import check_choice, check_integer
from fopru.evaluation.tasks import Example
from fopru.pocket import scenes
from fopru.pocket.answers import legal
from fopru.pocket.drawing import Question, Scene

QUESTIONS_PER_IMAGE = 3

METRICS = {"presence": "f1", "documents": "anls", "charts": "relaxed"}
"""The metrics of tasks that are not judged by accuracy alone, those of their public cousins."""


def folder(name: str = "pocket") -> Path:
    """The folder of the shipped model, in Hugging Face format, or of its benchmark.

    Raises:
        FileNotFoundError: it is neither in the installed package nor in the checkout.
    """
    here = Path(__file__).parent
    places = (here / "data" / name, here.parents[1] / "data" / name)
    for place in places:
        if place.is_dir():
            return place
    raise FileNotFoundError(f"{name} is in none of {', '.join(map(str, places))}.")


def sample(
    task: str | None = None, n: int = 100, seed: int = 0, world: str = "second"
) -> list[Example]:
    """Questions on fresh scenes, none of them seen in training or in PocketBench.

    Args:
        task: one of `fopru.pocket.scenes.TASKS`; None draws from all. In "combinations" there is no
            counting, no diagrams and no knowledge.
        n: number of questions; up to `QUESTIONS_PER_IMAGE` share a picture.
        seed: the same seed gives the same questions, and a larger n more of them.
        world: "second", the scenes that the pocket model knows; "combinations", scenes with things
            that are never together in its training; "first", easier ones, which the weights in
            `data/pocket-first` know.

    Raises:
        ValueError: an unknown world or task, or n or seed that is no integer of at least 0.
    """
    check_choice("world", world, scenes.WORLDS)
    tasks = scenes.WORLDS[world].tasks
    if task is not None:
        check_choice("task", task, tasks)
    for argument, value in (("n", n), ("seed", seed)):
        check_integer(argument, value, minimum=0)
    kind = tasks[task][0] if task else None
    examples: list[Example] = []
    index = 0
    while len(examples) < n:
        scene = scenes.scene((scenes.SAMPLES, seed, index), kind, world=world)
        rng = np.random.default_rng((scenes.SAMPLES, seed, index, 1))
        found = scenes.questions(scene, rng, task)
        picture = f"{type(scene).__name__.lower()}-{seed}-{index}"
        examples += [
            example(f"{picture}-{found[i].task}-{i}", picture, scene, found[i])
            for i in rng.permutation(len(found))[:QUESTIONS_PER_IMAGE]
        ]
        index += 1
    return examples[:n]


def example(name: str, picture: str, scene: Scene, asked: Question) -> Example:
    """A question in the form that evaluation takes."""
    truth = {"image_id": picture, "variant": asked.variant, **scene.truth()}
    choices = asked.choices or legal(asked.task, asked.variant)
    told = (asked.text, asked.answer, choices, asked.evidence)
    metric = METRICS.get(asked.task, "accuracy")
    return Example(name, asked.task, scene.image, *told, truth, metric=metric)
