"""The command line: `fopru ask` and `fopru pocket`."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer
from accelerate import PartialState
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedModel, ProcessorMixin

from fopru import FoPru, PrunedImage, PrunedInputs, Pruner, Random, encode, evaluation, load, plots
from fopru.evaluation import Example, chat, read_jsonl, statistics
from fopru.evaluation.runner import settings
from fopru.evaluation.store import provenance
from fopru.pictures import load_image
from fopru.pocket import benchmark, pocketbench
from fopru.pocket import sample as questions
from fopru.pocket import score as scoring
from fopru.pocket import train as training
from fopru.pocket.scenes import TASKS

app = typer.Typer(
    no_args_is_help=True,
    help="Visual-token pruning for vision-language models.",
    pretty_exceptions_enable=False,
)
pocket_app = typer.Typer(no_args_is_help=True, help="The embedded pocket model.")
app.add_typer(pocket_app, name="pocket")


class Strategy(StrEnum):
    rank = "rank"
    row = "row"


@contextmanager
def one_sentence() -> Iterator[None]:
    """Bad input ends the command with one sentence on stderr and exit code 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        message = " ".join(str(error).split())
        typer.echo(f"fopru: {message}", err=True)
        raise typer.Exit(2) from None


@app.command()
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


@app.command()
def evaluate(
    tasks: Annotated[
        list[str], typer.Argument(help="Tasks of PocketBench, or a .jsonl file of your own.")
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
        if out.suffix != ".parquet":
            raise ValueError(f"--out {out}: must end in .parquet.")
        examples = [e for task in _questions(tasks, split) for e in task[:limit]]
        methods = method or ["fopru", "fopru-row", "random"]
        retentions = retention or [0.5, 0.25, 0.1]
        settings(methods, retentions, positions)  # refused before a model is loaded
        processes = PartialState()  # of `accelerate launch`, or this one alone
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
        if not processes.is_main_process:
            return
        results.to_parquet(out, index=False, compression="zstd")
        out.with_suffix(".json").write_text(json.dumps(provenance(), indent=1) + "\n")
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
    shipped = [] if all(name.endswith(".jsonl") for name in tasks) else benchmark(split)
    for name in tasks:
        if name.endswith(".jsonl"):
            yield read_jsonl(name)
            continue
        if name not in TASKS:
            near = get_close_matches(name, TASKS, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"task {name!r}: must be a .jsonl file or one of {', '.join(TASKS)}.{hint}"
            )
        yield [e for e in shipped if e.task == name]


@pocket_app.command()
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
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"--device {device}: this machine has no CUDA device.")
        recipe = training.Recipe(seed=seed)
        recipe = recipe.shortened() if half else recipe
        recipe = recipe.without_dense_labels() if captions_only else recipe
        training.train(out, checkpoints, recipe, device=device)
    plots.training(pd.read_csv(out / "log.csv")).savefig(out / "log.png", dpi=120)
    typer.echo(f"pocket model: {out}")


@pocket_app.command()
def score(
    n: Annotated[int, typer.Option(min=2, help="Questions per task.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Of the questions.")] = 1,
    model: Annotated[str, typer.Option(help="pocket, or a folder that train wrote.")] = "pocket",
    out: Annotated[
        Path | None, typer.Option(help="Write answers to this .parquet, provenance beside it.")
    ] = None,
) -> None:
    """Accuracy per task with intervals: all tokens, blind, and pruned by several methods."""
    with one_sentence():
        if out is not None and out.suffix != ".parquet":
            raise ValueError(f"--out {out}: must end in .parquet.")
        results = scoring.score(n, seed, model)
        if out is not None:
            results.to_parquet(out, index=False, compression="zstd")
            about = json.dumps(provenance(), indent=1)
            out.with_suffix(".json").write_text(about + "\n")
        stands_out = scoring.sinks(n, seed, model)
    typer.echo(scoring.report(results, stands_out))


@pocket_app.command()
def sample(
    out: Annotated[Path, typer.Argument(help="Parquet file to write.")],
    task: Annotated[str | None, typer.Option(help="One task; all if not given.")] = None,
    n: Annotated[int, typer.Option(min=1, help="Number of questions.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Of the questions.")] = 0,
) -> None:
    """Write fresh questions with their pictures, in PocketBench's format."""
    with one_sentence():
        if out.suffix != ".parquet":
            raise ValueError(f"OUT {out}: must end in .parquet.")
        pocketbench.write(questions(task, n, seed), out)
    typer.echo(f"{n} questions: {out}")
