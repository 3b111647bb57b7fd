"""`fopru ask`."""

from __future__ import annotations

import io
import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image

from fopru.cli.common import TOKENS_HELP, noted, one_sentence
from fopru.pictures import load_image, open_image
from fopru.videos import Video


class Weights(StrEnum):
    """The values of `--weights`."""

    none = "none"
    mass = "mass"
    restore = "restore"


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
    images: Annotated[
        list[str],
        typer.Argument(
            help="Picture files, or - for standard input; none with --video.",
            default_factory=list,
            show_default=False,
        ),
    ],
    question: Annotated[str, typer.Argument(help="A question about them.")],
    video: Annotated[
        Path | None,
        typer.Option(help="A folder of frames, an animation (GIF, WebP, ...) or a film."),
    ] = None,
    frames: Annotated[int, typer.Option(help="Frames of the video at most, evenly spaced.")] = 16,
    model: Annotated[str, typer.Option(help="pocket, a Hugging Face id, or a folder.")] = "pocket",
    method: Annotated[str, typer.Option(help="A name in fopru.METHODS.")] = "fopru",
    retention: Annotated[
        float | None,
        typer.Option(help="Share of visual tokens kept, in (0, 1]; 0.25 if none is given."),
    ] = None,
    tokens: Annotated[int | None, typer.Option(help=TOKENS_HELP)] = None,
    weights: Annotated[
        Weights,
        typer.Option(
            help="mass: a kept token counts as all those that it stands for; restore: more so, the "
            "farther away it is."
        ),
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
    with one_sentence(), noted():
        if not question.strip():
            raise ValueError(f"question={question!r}: ask something.")
        if bool(images) == (video is not None):
            raise ValueError("give picture files before the question, or --video, and not both.")
        if overlay is not None:
            _check_overlay(overlay)
            if len(images) != 1:
                raise ValueError(f"--overlay {overlay}: is drawn for one picture, not for more.")
        if images.count("-") > 1:
            raise ValueError("-: standard input holds one picture.")
        shown = (
            [_picture(image) for image in images] if images else Video(video, None, frames).read()
        )
    with one_sentence(), noted():
        from fopru.cli import answering  # torch, which bad input need not wait for

        pruner = answering.pruner(
            method,
            retention=retention,
            tokens=tokens,
            weights=weights.value,
            positions=positions and positions.value,
        )
        asked = answering.Asked(model, shown, question, device, dtype and dtype.value)
        for note in asked.notes():
            typer.echo(f"fopru: {note}", err=True)
        result = asked.compare(pruner, max_new_tokens)
        if overlay is not None:
            asked.draw(overlay)
    result = {
        "images": images,
        "video": video and str(video),
        "question": question,
        "model": model,
        "method": method,
        "retention": pruner.share,
        "tokens": pruner.tokens,
        "weights": weights.value,
        "attention": pruner.attended(asked.family),
        **result,
    }
    if as_json:
        typer.echo(json.dumps(result, indent=2))
        return
    answering.show(result)
    if overlay is not None:
        typer.echo(f"overlay: {overlay}")


def _picture(image: str) -> Image.Image:
    if image == "-":
        return open_image(io.BytesIO(sys.stdin.buffer.read()), "-")
    return load_image(image)


def _check_overlay(path: Path) -> None:
    """Refuse early what could not be written after minutes of work."""
    if path.suffix.lower() != ".png":
        raise ValueError(f"--overlay {path}: must end in .png.")
    if not path.parent.is_dir():
        raise ValueError(f"--overlay {path}: there is no folder {path.parent}.")
