"""`fopru evaluate`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from fopru.cli.common import check_out, one_sentence

TABLE = frozenset({"id", "method", "prediction", "loglik"})
"""The columns by which a table of answers is known."""


def evaluate(
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
    model: Annotated[str, typer.Option(help="pocket, a Hugging Face id, or a folder.")] = "pocket",
    method: Annotated[
        list[str] | None, typer.Option(help="Once per method; fopru, fopru-row, random if none.")
    ] = None,
    retention: Annotated[
        list[float] | None, typer.Option(help="Once per share kept; 0.5, 0.25, 0.1 if none.")
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(help="Of every method: none, mass, or both (given twice); none if not given."),
    ] = None,
    positions: Annotated[
        str | None, typer.Option(help="reindex or preserve; the family's default if not given.")
    ] = None,
    blind: Annotated[list[str] | None, typer.Option(help="none, grey or swapped.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How often methods draw at random.")] = 5,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions per task.")] = None,
    split: Annotated[str, typer.Option(help="Of PocketBench: test or validation.")] = "test",
    batch_size: Annotated[int, typer.Option(min=1, help="Questions at a time.")] = 64,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 8,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, ...; a GPU if there is one.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Of the weights, as bfloat16; auto is that of the files.")
    ] = "auto",
) -> None:
    """Accuracy against retention, with intervals, beside the full model."""
    with one_sentence(), stoppable(), noted():
        check_out(out, TABLE)
        from fopru.cli import evaluating  # torch, which bad input need not wait for

        pruners = evaluating.pruners(
            method or ["fopru", "fopru-row", "random"], weights or ["none"], positions
        )
        results = evaluating.results(
            tasks,
            out,
            model,
            pruners,
            retention or [0.5, 0.25, 0.1],
            blind or [],
            limit,
            split,
            device,
            dtype,
            positions=positions,
            seeds=range(seeds),
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
        )
    if results is not None:
        evaluating.show(results, out)


@contextmanager
def stoppable() -> Iterator[None]:
    """End the command with a sentence and exit code 130 on Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("fopru: stopped; the same command goes on.", err=True)
        raise typer.Exit(130) from None


@contextmanager
def noted() -> Iterator[None]:
    """Tell warnings at the end, each once and in one line, not amid the progress."""
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        try:
            yield
        finally:
            for text in dict.fromkeys(str(n.message) for n in notes if n.category is UserWarning):
                typer.echo(f"fopru: {' '.join(text.split())}", err=True)
