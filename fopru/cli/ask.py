"""`fopru ask`."""

from __future__ import annotations

import json
import sys
import time
import warnings
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedModel, ProcessorMixin

from fopru import FoPru, PrunedImage, PrunedInputs, Pruner, Random, encode, load, plots
from fopru.cli.common import one_sentence
from fopru.evaluation import chat
from fopru.pictures import load_image


class Strategy(StrEnum):
    rank = "rank"
    row = "row"


def ask(
    image: Annotated[Path, typer.Argument(help="A picture file.")],
    question: Annotated[str, typer.Argument(help="A question about it.")],
    model: Annotated[str, typer.Option(help="pocket, a Hugging Face id, or a folder.")] = "pocket",
    retention: Annotated[
        float, typer.Option(help="Share of visual tokens kept, in (0, 1].")
    ] = 0.25,
    strategy: Annotated[Strategy, typer.Option(help="FoPru's strategy.")] = Strategy.rank,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 32,
    overlay: Annotated[Path | None, typer.Option(help="Write what was kept to this .png.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Ask with all visual tokens and with the kept ones: answers, token counts, times."""
    with warnings.catch_warnings(record=True) as notes, one_sentence():
        warnings.simplefilter("always")
        pruner = FoPru(retention=retention, strategy=strategy.value)
        if overlay is not None:
            _check_overlay(overlay)
        picture = load_image(image)
    for note in notes:
        if note.category is UserWarning:
            typer.echo(f"fopru: {note.message}", err=True)
    with one_sentence():
        try:
            net, processor = load(model)
        except OSError as error:
            raise ValueError(f"--model {model} cannot be loaded: {error}") from None
        result, pruned = _compare(net, processor, picture, question, pruner, max_new_tokens)
        if overlay is not None:
            _write_overlay(overlay, picture, pruned.images[0], processor)
    result = {
        "image": str(image),
        "question": question,
        "model": model,
        "retention": retention,
        "strategy": strategy.value,
        **result,
    }
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        _print_table(result)
        if overlay is not None:
            typer.echo(f"overlay: {overlay}")


def _check_overlay(path: Path) -> None:
    """Refuse early what could not be written after minutes of work."""
    if path.suffix.lower() != ".png":
        raise ValueError(f"--overlay {path}: must end in .png.")
    if not path.parent.is_dir():
        raise ValueError(f"--overlay {path}: there is no folder {path.parent}.")


def _write_overlay(
    path: Path, picture: Image.Image, pruned_image: PrunedImage, processor: ProcessorMixin
) -> None:
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    plots.significance(picture, pruned_image, processor, ax=left)
    plots.overlay(picture, pruned_image, processor, ax=right)
    partial = path.with_name(f".{path.name}.partial")
    try:
        figure.savefig(partial, format="png", dpi=150)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _compare(
    net: PreTrainedModel,
    processor: ProcessorMixin,
    picture: Image.Image,
    question: str,
    pruner: Pruner,
    max_new_tokens: int,
) -> tuple[dict[str, Any], PrunedInputs]:
    """Answers and times with every visual token, and with the kept ones."""
    if not getattr(processor, "chat_template", None):
        raise ValueError(
            f"{type(processor).__name__} of this model has no chat template, so there "
            "is no way to know how it wants to be asked."
        )
    prompt = processor.apply_chat_template(chat(question), add_generation_prompt=True)
    inputs = processor(images=picture, text=prompt, return_tensors="pt").to(net.device)

    def run(method: Pruner, tokens: int) -> tuple[dict[str, Any], PrunedInputs]:
        marks = _Marks(net.device)
        pruned = method.compact(encode(net, inputs, [method]))
        marks.note()
        out = net.generate(**pruned, max_new_tokens=tokens, do_sample=False, streamer=marks)
        new = out[0, pruned["input_ids"].shape[1] :]
        times = marks.stages()
        return {
            "answer": processor.decode(new, skip_special_tokens=True).strip(),
            "visual_tokens": sum(i.n_kept for i in pruned.images),
            "new_tokens": len(new),
            **times,
        }, pruned

    run(pruner, 1)  # warm-up, not reported
    full, _ = run(Random(1.0), max_new_tokens)  # keeps all: nothing is scored, nothing changes
    result, pruned = run(pruner, max_new_tokens)
    return {"full": full, "pruned": result}, pruned


class _Marks:
    """A streamer that only looks at the clock: at the prompt, then at each token."""

    def __init__(self, device: torch.device):
        self.device = device
        self.times: list[float] = []
        self.note()

    def note(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.times.append(time.perf_counter())

    def put(self, value: Any) -> None:
        self.note()

    def end(self) -> None:
        pass

    def stages(self) -> dict[str, float]:
        """Milliseconds: the vision tower with scoring and selection; the prefill up to the first
        token; the other tokens."""
        start, encoded, _, first, *_ = self.times
        seconds = (encoded - start, first - encoded, self.times[-1] - first)
        names = ("vision_ms", "prefill_ms", "decode_ms")
        return {name: round(1000 * s, 2) for name, s in zip(names, seconds, strict=True)}


def _print_table(result: dict[str, Any]) -> None:
    table = Table(title=Text(result["question"]))
    for column in ("", "answer", "tokens", "vision ms", "prefill ms", "decode ms"):
        text = column in ("", "answer")
        table.add_column(column, justify="left" if text else "right", no_wrap=column != "answer")
    names = {"full": "all tokens", "pruned": f"FoPru {result['strategy']} {result['retention']:g}"}
    for key, name in names.items():
        row = result[key]
        times = (f"{row[stage]:.1f}" for stage in ("vision_ms", "prefill_ms", "decode_ms"))
        table.add_row(name, Text(row["answer"]), str(row["visual_tokens"]), *times)
    Console(file=sys.stdout).print(table)
