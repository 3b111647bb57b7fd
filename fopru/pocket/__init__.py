"""The embedded model: its scenes, what it is made of, and how it is trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fopru.evaluation.tasks import Example
from fopru.pocket import scenes

QUESTIONS_PER_IMAGE = 3

TRAINING, EVALUATION = 0, 1
"""First entries of every scene's seed: training and evaluation draw from disjoint streams."""

CHECKPOINTS = Path("~/.cache/fopru/pocket-train")
"""What a stopped training run resumes from."""


def folder() -> Path:
    """The folder of the shipped model, in Hugging Face format.

    Raises:
        FileNotFoundError: it is neither in the installed package nor in the checkout.
    """
    here = Path(__file__).parent
    places = (here / "data", here.parents[1] / "data" / "pocket")
    for place in places:
        if (place / "config.json").is_file():
            return place
    raise FileNotFoundError(f"the pocket model is in none of {', '.join(map(str, places))}.")


def sample(task: str | None = None, n: int = 100, seed: int = 0) -> list[Example]:
    """Questions on fresh scenes, none of them seen in training.

    Args:
        task: one of `fopru.pocket.scenes.TASKS`; None draws from all.
        n: number of questions; up to `QUESTIONS_PER_IMAGE` share a picture.
        seed: non-negative; the same seed gives the same questions, and a larger n more of them.

    Raises:
        ValueError: an unknown task, or a negative n or seed.
    """
    if task is not None and task not in scenes.TASKS:
        raise ValueError(f"task={task!r}: must be one of {', '.join(map(repr, scenes.TASKS))}.")
    for argument, value in (("n", n), ("seed", seed)):
        if value < 0:
            raise ValueError(f"{argument}={value}: must not be negative.")
    examples: list[Example] = []
    index = 0
    while len(examples) < n:
        scene = scenes.scene((EVALUATION, seed, index))
        rng = np.random.default_rng((EVALUATION, seed, index, 1))
        found = scenes.questions(scene, rng, task)
        truth = {"image_id": f"{seed}-{index}", **scene.truth()}
        for i in rng.permutation(len(found))[:QUESTIONS_PER_IMAGE]:
            q = found[i]
            examples.append(
                Example(
                    f"{seed}-{index}-{i}",
                    q.task,
                    scene.image,
                    q.text,
                    q.answer,
                    evidence=q.evidence,
                    scene=truth,
                )
            )
        index += 1
    return examples[:n]
