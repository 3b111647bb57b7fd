"""`python data/making`: train, score."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from fopru import plots
from fopru.cli.common import check_parquet, device_of, keep, one_sentence
from making import score as scoring
from making import train as training

app = typer.Typer(add_completion=False, no_args_is_help=True, help="How the pocket model is made.")


@app.command()
def train(
    out: Annotated[Path, typer.Argument(help="Folder for the trained model.")],
    checkpoints: Annotated[
        Path, typer.Option(help="Folder to resume from.")
    ] = training.CHECKPOINTS,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    half: Annotated[bool, typer.Option("--half", help="Half of the steps.")] = False,
    captions_only: Annotated[
        bool, typer.Option("--captions-only", help="Do not tell patches what lies under them.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, or cuda.")] = "cpu",
) -> None:
    """Train the pocket model anew; a run that was stopped is resumed."""
    with one_sentence():
        recipe = training.Recipe(seed=seed)
        recipe = recipe.shortened(2) if half else recipe
        recipe = recipe.without_dense_labels() if captions_only else recipe
        training.train(out, checkpoints, recipe, device=str(device_of(device)))
    plots.training(pd.read_csv(out / "log.csv")).savefig(out / "log.png", dpi=120)
    typer.echo(f"pocket model: {out}")


@app.command()
def score(
    models: Annotated[
        list[str] | None, typer.Argument(help="Folders that train wrote; else the shipped ones.")
    ] = None,
    n: Annotated[int, typer.Option(min=4, help="Questions per task.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Of the questions.")] = 1,
    world: Annotated[
        str, typer.Option(help="second, or first, which data/pocket-first was trained on.")
    ] = "second",
    out: Annotated[
        Path | None, typer.Option(help="Write answers to this .parquet, provenance beside it.")
    ] = None,
) -> None:
    """Accuracy per task with intervals: all tokens, blind, and pruned by several methods."""
    with one_sentence():
        if out is not None:
            check_parquet(out)
        results = scoring.score(models or scoring.shipped(), n, seed, world=world)
        if out is not None:
            keep(results, out)
    typer.echo(scoring.report(results))
