"""`fopru ask`."""

from __future__ import annotations

import io
import json
import sys
import warnings
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fopru.cli.common import one_sentence
from fopru.pictures import load_image, open_image


class Weights(StrEnum):
    """The values of `--weights`."""

    none = "none"
    mass = "mass"


class Positions(StrEnum):
    """The values of `--positions`."""

    preserve = "preserve"
    reindex = "reindex"


class DType(StrEnum):
    """The values of `--dtype`."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def ask(
    image: Annotated[str, typer.Argument(help="A picture file, or - for standard input.")],
    question: Annotated[str, typer.Argument(help="A question about it.")],
    model: Annotated[str, typer.Option(help="pocket, a Hugging Face id, or a folder.")] = "pocket",
    method: Annotated[str, typer.Option(help="A name in fopru.METHODS.")] = "fopru",
    retention: Annotated[
        float, typer.Option(help="Share of visual tokens kept, in (0, 1].")
    ] = 0.25,
    weights: Annotated[
        Weights, typer.Option(help="mass: a kept token counts as all those that it stands for.")
    ] = Weights.none,
    positions: Annotated[
        Positions | None, typer.Option(help="The family's default if not given.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 32,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, ...; a GPU of CUDA if there is one.")
    ] = None,
    dtype: Annotated[DType | None, typer.Option(help="The checkpoint's if not given.")] = None,
    overlay: Annotated[Path | None, typer.Option(help="Write what was kept to this .png.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Ask with all visual tokens and with the kept ones: answers, token counts, times."""
    with warnings.catch_warnings(record=True) as notes, one_sentence():
        warnings.simplefilter("always")
        if not question.strip():
            raise ValueError(f"question={question!r}: ask something.")
        if overlay is not None:
            _check_overlay(overlay)
        picture = (
            open_image(io.BytesIO(sys.stdin.buffer.read()), "-")
            if image == "-"
            else (load_image(image))
        )
    for note in notes:
        if note.category is UserWarning:
            typer.echo(f"fopru: {note.message}", err=True)
    with one_sentence():
        from fopru.cli import answering  # torch, which bad input need not wait for

        pruner = answering.pruner(method, retention, weights.value, positions and positions.value)
        asked = answering.Asked(model, picture, question, device, dtype and dtype.value)
        for note in asked.notes():
            typer.echo(f"fopru: {note}", err=True)
        result = asked.compare(pruner, max_new_tokens)
        if overlay is not None:
            asked.draw(overlay)
    result = {
        "image": image,
        "question": question,
        "model": model,
        "method": method,
        "retention": retention,
        "weights": weights.value,
        **result,
    }
    if as_json:
        typer.echo(json.dumps(result, indent=2))
        return
    answering.show(result)
    if overlay is not None:
        typer.echo(f"overlay: {overlay}")


def _check_overlay(path: Path) -> None:
    """Refuse early what could not be written after minutes of work."""
    if path.suffix.lower() != ".png":
        raise ValueError(f"--overlay {path}: must end in .png.")
    if not path.parent.is_dir():
        raise ValueError(f"--overlay {path}: there is no folder {path.parent}.")
