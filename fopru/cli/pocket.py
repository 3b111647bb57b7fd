"""`fopru pocket`: sample."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import fopru
from fopru.cli.common import check_parquet, one_sentence

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.callback()
def pocket() -> None:
    """The embedded pocket model."""


@app.command()
def sample(
    out: Annotated[Path, typer.Argument(help="Parquet file to write.")],
    task: Annotated[str | None, typer.Option(help="One task; all if not given.")] = None,
    n: Annotated[int, typer.Option(min=1, help="Number of questions.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Of the questions.")] = 0,
) -> None:
    """Write fresh questions with their pictures, in PocketBench's format."""
    with one_sentence():
        check_parquet(out)
        fopru.pocket.pocketbench.write(fopru.pocket.sample(task, n, seed), out)
    typer.echo(f"{n} questions: {out}")
