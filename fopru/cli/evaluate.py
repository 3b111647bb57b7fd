"""`fopru evaluate`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Column, Table

import fopru
from fopru.arguments import check_choice, hint
from fopru.cli import served
from fopru.cli.common import (
    TOKENS_HELP,
    check_out,
    device_of,
    keep,
    noted,
    one_sentence,
    percent,
)

if TYPE_CHECKING:
    import pandas as pd

    from fopru.evaluation import Example

TABLE = frozenset({"id", "method", "prediction", "loglik"})
"""The columns by which a table of answers is known."""


def evaluate(
    context: typer.Context,
    tasks: Annotated[
        list[str],
        typer.Argument(
            help="Tasks of PocketBench, or files: .jsonl of your own, .parquet of `pocket sample`."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="Results, .parquet. Beside it .json says how they were made, and .sqlite keeps "
            "all answers: a stopped run goes on."
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="pocket, a Hugging Face id, or a folder; pocket if not given. With --server the "
            "name that it has there."
        ),
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="Once per method; fopru, fopru-row, random if none.")
    ] = None,
    retention: Annotated[
        list[float] | None, typer.Option(help="Once per share kept; 0.5, 0.25, 0.1 if none.")
    ] = None,
    tokens: Annotated[
        list[int] | None, typer.Option(help=f"Once per number. {TOKENS_HELP}")
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(help="Of every method, once each: none, mass, restore; none if not given."),
    ] = None,
    positions: Annotated[
        str | None, typer.Option(help="reindex or preserve; the family's default if not given.")
    ] = None,
    blind: Annotated[list[str] | None, typer.Option(help="none, grey or swapped.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How often methods draw at random.")] = 5,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions per task.")] = None,
    split: Annotated[
        str,
        typer.Option(help="Of PocketBench: test, validation, combinations or hallucination."),
    ] = "test",
    batch_size: Annotated[int, typer.Option(min=1, help="Questions at a time.")] = 64,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 8,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, ...; a GPU if there is one.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Of the weights, as bfloat16; auto is that of the files.")
    ] = "auto",
    server: Annotated[
        str | None,
        typer.Option(
            help="Ask an OpenAI-compatible server, as http://localhost:8000, and measure its "
            "latency. --retention then goes with each request; without, it is asked as it is."
        ),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests to the server at a time.")] = 8,
    timeout: Annotated[
        float, typer.Option(help="Seconds until a request to the server counts as unanswered.")
    ] = 120.0,
    add_special_tokens: Annotated[
        bool,
        typer.Option(
            "--add-special-tokens",
            help="Let the server begin prompts with what its tokenizer adds: for chat templates "
            "without a first token, as pocket's.",
        ),
    ] = False,
    key_from: Annotated[
        str | None, typer.Option(help="The environment variable that holds the server's key.")
    ] = None,
) -> None:
    """Accuracy against retention, with intervals, beside the full model."""
    with one_sentence(), stoppable(), noted():
        check_out(out, TABLE)
        served.check_parameters(context)
        evaluation = fopru.evaluation  # torch with it, which help and bad input need not wait for
        store = out.with_suffix(".sqlite")
        evaluation.store.check_results_file(store)
        if server is not None:
            results = evaluation.evaluate_server(
                server,
                _examples(tasks, split, limit),
                retention or None,
                model,
                max_new_tokens,
                concurrency,
                timeout,
                add_special_tokens,
                served.key(key_from),
                store,
            )
        else:
            controls, settings = evaluation.controls, evaluation.settings
            allowed = {**fopru.METHODS, **controls.CONTROLS}
            pruners = [
                settings.as_pruner(name, allowed, weights=kind, positions=positions)
                for kind in weights or ["none"]
                for name in method or ["fopru", "fopru-row", "random"]
            ]
            retentions, budgets = retention or None, tokens or None
            settings.settings(pruners, retentions, tokens=budgets)  # before a model is loaded
            for control in blind or ():
                check_choice("blind", control, tuple(controls.BLIND))
            examples = _examples(tasks, split, limit)
            processes = evaluation.runner.launched()
            place = processes.device if device is None else device_of(device)
            net, processor = fopru.load(model or "pocket", dtype=dtype)
            results = evaluation.evaluate(
                net.to(place),
                processor,
                examples,
                pruners,
                retentions,
                positions,
                seeds=range(seeds),
                blind=blind or (),
                batch_size=batch_size,
                max_new_tokens=max_new_tokens,
                out=store,
                tokens=budgets,
            )
            processes.destroy_process_group()
            if not processes.is_main_process:
                return
        keep(results, out, **results.attrs)
    failed = results["error"].dropna().unique()
    if len(failed) < results["error"].nunique(dropna=False):
        (_show if server is None else served.show)(results)
    typer.echo(f"{len(results)} answers: {out}")
    for reason in failed:
        typer.echo(f"fopru: {reason}", err=True)
    if len(failed):
        raise typer.Exit(1)


@contextmanager
def stoppable() -> Iterator[None]:
    """End the command with a sentence and exit code 130 on Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("fopru: stopped; the same command goes on.", err=True)
        raise typer.Exit(130) from None


def _show(results: pd.DataFrame) -> None:
    """Print a line for each task, method and retention: what is known and what is said."""
    from fopru.evaluation import statistics

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
        shown = [percent(table.loc[[key]]) for table in cells.values()]
        judged = (f"{s.metric} {100 * s.score:.1f}" for s in scores[key].itertuples())
        lines.add_row(key[0], key[1], f"{row.kept:.0f}", *shown, "\n".join(judged))
    Console(file=sys.stdout).print(lines)


def _examples(tasks: list[str], split: str, limit: int | None) -> list[Example]:
    return [e for task in _questions(tasks, split) for e in task[:limit]]


def _questions(tasks: list[str], split: str) -> Iterator[list[Example]]:
    """Yield the questions of each task; those of PocketBench share their pictures."""
    check_choice("split", split, fopru.pocket.pocketbench.SPLITS)
    known = fopru.pocket.pocketbench.SPLITS[split].tasks
    readers = {".jsonl": fopru.evaluation.read_jsonl, ".parquet": fopru.pocket.pocketbench.read}
    for name in tasks:
        if Path(name).suffix not in readers and name not in known:
            raise ValueError(
                f"task {name!r}: must be a .jsonl or .parquet file or, of PocketBench's split "
                f"{split!r}, one of {', '.join(known)}."
                f"{hint(name, known)}"
            )
    shipped = fopru.pocket.benchmark(split) if set(tasks) & set(known) else []
    for name in tasks:
        reader = readers.get(Path(name).suffix)
        yield reader(name) if reader else [e for e in shipped if e.task == name]
