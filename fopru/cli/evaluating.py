"""What `fopru evaluate` does: the pruners of its options, their answers, and the table of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import typer
from rich import box
from rich.console import Console
from rich.table import Column, Table

from fopru import evaluation, load
from fopru.arguments import check_choice, hint
from fopru.cli.common import device_of, keep
from fopru.evaluation import Example, read_jsonl, statistics
from fopru.evaluation.controls import BLIND, CONTROLS
from fopru.evaluation.runner import launched
from fopru.evaluation.settings import as_pruner, settings
from fopru.evaluation.store import check_results_file
from fopru.pocket import benchmark, pocketbench
from fopru.pocket.scenes import TASKS
from fopru.pruner import METHODS, Pruner


def pruners(names: Sequence[str], weights: Sequence[str], positions: str | None) -> list[Pruner]:
    """Return the methods and controls of these names, each with each kind of weights.

    Raises:
        ValueError: there is no such method, or it does not take an option.
    """
    allowed = {**METHODS, **CONTROLS}
    options = {"positions": positions}
    return [as_pruner(n, allowed, weights=kind, **options) for kind in weights for n in names]


def results(
    tasks: Sequence[str],
    out: Path,
    model: str,
    methods: Sequence[Pruner],
    retentions: Sequence[float],
    blind: Sequence[str],
    limit: int | None,
    split: str,
    device: str | None,
    dtype: str,
    **options: Any,
) -> pd.DataFrame | None:
    """Return the answers, which are written to `out`, or None in processes that help another one.

    Args:
        options: Those of `fopru.evaluate` that go there as they are.

    Raises:
        ValueError, OSError: as of `fopru.load` and `fopru.evaluate`.
    """
    stored = out.with_suffix(".sqlite")
    check_results_file(stored)
    settings(methods, retentions)  # refused before a model is loaded
    for control in blind:
        check_choice("blind", control, tuple(BLIND))
    examples = [e for task in _questions(tasks, split) for e in task[:limit]]
    processes = launched()
    place = processes.device if device is None else device_of(device)
    net, processor = load(model, dtype=dtype)
    table = evaluation.evaluate(
        net.to(place), processor, examples, methods, retentions, blind=blind, out=stored, **options
    )
    processes.destroy_process_group()
    if not processes.is_main_process:
        return None
    keep(table, out)
    return table


def show(table: pd.DataFrame, out: Path) -> None:
    """Print what was found, and where the answers are.

    Raises:
        typer.Exit: a question was not answered; its reason is on stderr.
    """
    failed = table["error"].dropna().unique()
    if len(failed) < table["error"].nunique(dropna=False):
        _show(table)
    typer.echo(f"{len(table)} answers: {out}")
    for reason in failed:
        typer.echo(f"fopru: {reason}", err=True)
    if len(failed):
        raise typer.Exit(1)


def _show(results: pd.DataFrame) -> None:
    """Print a line for each task, method and retention: what is known and what is said."""
    keys = ["task", "method", "retention"]
    scores = {key: part for key, part in statistics.scores(results).groupby(keys, sort=False)}
    knows = results["choice"].notna().any()
    cells = {
        name: statistics.accuracy(results, value=column).set_index(keys)
        for name, column in statistics.READINGS.items()
        if knows or name == "said"
    }
    rows = cells["said"].index  # a task whose questions name no legal answers has no "known"
    cells = {name: table.reindex(rows) for name, table in cells.items()}
    whole = [Column(name, no_wrap=True) for name in ("task", "method", "kept", "own metric")]
    lines = Table(*whole[:3], *cells, whole[3], box=box.SIMPLE)
    lines.title = "percent, and 95 % intervals over pictures"
    for key, row in cells["said"].iterrows():
        shown = [_percent(table.loc[[key]]) for table in cells.values()]
        judged = (f"{s.metric} {100 * s.score:.1f}" for s in scores[key].itertuples())
        lines.add_row(key[0], key[1], f"{row.kept:.0f}", *shown, "\n".join(judged))
    Console(file=sys.stdout).print(lines)


def _percent(cell: pd.DataFrame) -> str:
    """Return a share, and below it its interval, which a single picture has none of."""
    if cell["mean"].isna().all():
        return "-"
    mean, low, high = (100 * cell[name].item() for name in ("mean", "low", "high"))
    return f"{mean:.1f}\n" + (f"{low:.0f}-{high:.0f}" if low == low else "one picture")


def _questions(tasks: list[str], split: str) -> Iterator[list[Example]]:
    """Yield the questions of each task; those of PocketBench share their pictures."""
    readers = {".jsonl": read_jsonl, ".parquet": pocketbench.read}
    for name in tasks:
        if Path(name).suffix not in readers and name not in TASKS:
            raise ValueError(
                f"task {name!r}: must be a .jsonl or .parquet file or one of {', '.join(TASKS)}."
                f"{hint(name, TASKS)}"
            )
    shipped = benchmark(split) if set(tasks) & set(TASKS) else []
    for name in tasks:
        reader = readers.get(Path(name).suffix)
        yield reader(name) if reader else [e for e in shipped if e.task == name]
