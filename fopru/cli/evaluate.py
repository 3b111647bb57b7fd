"""`fopru evaluate`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fopru import evaluation, load
from fopru.arguments import hint
from fopru.cli.common import check_parquet, keep, one_sentence
from fopru.evaluation import Example, read_jsonl, statistics
from fopru.evaluation.runner import launched, settings
from fopru.pocket import benchmark, pocketbench
from fopru.pocket.scenes import TASKS


def evaluate(
    tasks: Annotated[
        list[str],
        typer.Argument(
            help="Tasks of PocketBench, or files: .jsonl of your own, .parquet of `pocket sample`."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Results, .parquet; a stopped run goes on.")],
    model: Annotated[str, typer.Option(help="pocket, a Hugging Face id, or a folder.")] = "pocket",
    method: Annotated[
        list[str] | None, typer.Option(help="Once per method; fopru, fopru-row, random if none.")
    ] = None,
    retention: Annotated[
        list[float] | None, typer.Option(help="Once per share kept; 0.5, 0.25, 0.1 if none.")
    ] = None,
    positions: Annotated[
        str | None, typer.Option(help="reindex or preserve; the family's default if not given.")
    ] = None,
    blind: Annotated[list[str] | None, typer.Option(help="none, grey or swapped.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Of methods that draw at random.")] = 5,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions per task.")] = None,
    split: Annotated[str, typer.Option(help="Of PocketBench: test or validation.")] = "test",
    batch_size: Annotated[int, typer.Option(min=1, help="Questions at a time.")] = 64,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 8,
) -> None:
    """Accuracy against retention, with intervals, beside the full model."""
    with one_sentence():
        check_parquet(out)
        examples = [e for task in _questions(tasks, split) for e in task[:limit]]
        methods = method or ["fopru", "fopru-row", "random"]
        retentions = retention or [0.5, 0.25, 0.1]
        settings(methods, retentions, positions)  # refused before a model is loaded
        processes = launched()
        net, processor = load(model)
        results = evaluation.evaluate(
            net.to(processes.device),
            processor,
            examples,
            methods,
            retentions,
            positions,
            seeds=range(seeds),
            blind=blind or (),
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            out=out.with_suffix(".sqlite"),
        )
        processes.destroy_process_group()
        if not processes.is_main_process:
            return
        keep(results, out)
    broken, whole = (results[results["error"].notna() == bad] for bad in (True, False))
    scores = statistics.scores(whole).set_index(["task", "method", "retention"])
    table = Table("task", "method", "kept", "accuracy (%)", "95 %", "own metric (%)")
    for row in statistics.accuracy(whole).itertuples():
        interval = f"{100 * row.low:.1f} to {100 * row.high:.1f}"
        own = scores.loc[(row.task, row.method, row.retention)]
        shown = (f"{row.kept:.0f}", f"{100 * row.mean:.1f}", interval)
        table.add_row(row.task, row.method, *shown, f"{own.metric} {100 * own.score:.1f}")
    Console(file=sys.stdout).print(table)
    typer.echo(f"{len(results)} answers: {out}")
    if len(broken):
        for reason in broken["error"].unique():
            typer.echo(f"fopru: {reason}", err=True)
        raise typer.Exit(1)


def _questions(tasks: list[str], split: str) -> Iterator[list[Example]]:
    """The questions of each task, those of PocketBench on pictures that they share."""
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
