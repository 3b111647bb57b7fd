"""The numbers of the model card: what each training knows and says of each task with all tokens and
blind, and what pruning does to both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from fopru.evaluation import evaluate
from fopru.evaluation.controls import BLIND
from fopru.evaluation.statistics import accuracy
from fopru.evaluation.trainings import over_trainings
from fopru.loading import load
from fopru.pocket import folder, sample, scenes

METHODS = ("fopru", "fopru-row", "cls", "divprune", "random", "uniform", "oracle")
RETENTIONS = (0.5, 0.25, 0.1, 0.05)
TRAININGS = ("pocket", "pocket-0", "pocket-2")
"""The folders under `data/` of the weights that differ in the seed of their training only."""
TITLES = {"choice": "Known (forced choice)", "exact": "Said (exact match)"}


def shipped() -> list[Path]:
    """The folders of all trainings.

    Raises:
        FileNotFoundError: this is no checkout: a wheel holds the first one only.
    """
    return [folder(name) for name in TRAININGS]


def score(
    models: Sequence[str | Path],
    n: int = 200,
    seed: int = 1,
    methods: Sequence[str] = METHODS,
    retentions: Sequence[float] = RETENTIONS,
    world: str = "second",
) -> pd.DataFrame:
    """Ask each model n fresh questions per task with all tokens, blind, and pruned.

    Args:
        models: as for `fopru.load`: trainings of one recipe.
        n: questions per task.
        seed: of `fopru.pocket.sample`.
        methods, retentions: as for `fopru.evaluate`.
        world: as for `fopru.pocket.sample`: the one that the models were trained on.

    Returns:
        Rows of `fopru.evaluate`, with the place of their model in the column "training".
    """
    examples = [e for task in scenes.TASKS for e in sample(task, n, seed, world)]
    parts = []
    for training, model in enumerate(models):
        rows = evaluate(*load(model), examples, methods, retentions, "reindex", blind=tuple(BLIND))
        parts.append(rows.assign(training=training))
    return pd.concat(parts, ignore_index=True)


def report(results: pd.DataFrame) -> str:
    """The tables of the model card, in Markdown, from `score`."""
    parts = []
    for value, title in TITLES.items():
        parts += [f"### {title}, percent: all tokens, and the first training blind"]
        parts += [_whole(results, value)]
    for value, title in {**TITLES, "malformed": "Malformed answers"}.items():
        parts += [f"### {title}, percent: pruned", _pruned(results, value)]
    return "\n\n".join(parts)


def _cell(row: pd.Series) -> str:
    """Percent with their interval, which there is none of for a single picture."""
    ends = "" if math.isnan(row.low) else f" [{100 * row.low:.1f}, {100 * row.high:.1f}]"
    return f"{100 * row['mean']:.1f}{ends}"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _whole(results: pd.DataFrame, value: str) -> str:
    columns = {}
    for training, rows in results.groupby("training"):
        full = accuracy(rows[rows.method == "full"], value=value).set_index("task")
        columns[f"training {training}"] = full.apply(_cell, axis=1)
    first = results[results.training == 0]
    names = dict(zip(BLIND, ("no picture", "a grey one", "another one"), strict=True))
    for name, title in names.items():
        blind = accuracy(first[first.method == name], value=value).set_index("task")
        columns[title] = blind.apply(_cell, axis=1)
    lines = [[str(task), *row] for task, row in pd.DataFrame(columns).iterrows()]
    return _table(["task", *columns], lines)


def _pruned(results: pd.DataFrame, value: str) -> str:
    keys = ["task", "method", "retention"]
    cells = over_trainings(results, value=value).set_index(keys)["mean"]
    methods = [m for m in METHODS if m in set(results.method)]
    retentions = sorted(set(results.retention) - {0.0, 1.0}, reverse=True)
    lines = []
    for task in dict.fromkeys(results.task):
        line = [task, f"{100 * cells[task, 'full', 1.0]:.0f}"]
        for method in methods:
            line.append(" ".join(f"{100 * cells[task, method, r]:.0f}" for r in retentions))
        lines.append(line)
    kept = "/".join(f"{100 * r:.0f}" for r in retentions)
    head = f"Means over trainings. Columns of methods: {kept} % of the tokens.\n\n"
    return head + _table(["task", "all", *methods], lines)
