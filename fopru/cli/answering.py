"""What `fopru ask` does: one question, asked with all visual tokens and with the kept ones."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import typer
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers.utils.logging import disable_progress_bar

from fopru import METHODS, Pruner, load, plots
from fopru.applying import Session
from fopru.arguments import check_choice
from fopru.cli.common import device_of
from fopru.evaluation import chat
from fopru.evaluation.asking import videos
from fopru.families import Family
from fopru.videos import Video

TIMES = ("vision_ms", "prefill_ms", "decode_ms", "total_ms")


def pruner(method: str, **options: Any) -> Pruner:
    """Return the pruner of these options.

    Raises:
        ValueError: an unknown method, or an option that it does not take.
    """
    check_choice("method", method, tuple(METHODS))
    return METHODS[method](**options)


class Asked:
    """A question about pictures or a video, and the model that is asked.

    Raises:
        ValueError: the model has no chat template, or the question holds the picture's own token.
        UnsupportedModelError: a video, and the model's family has none.
        ImportError: a video, and torchvision, which its processor needs, is not installed.
    """

    def __init__(
        self,
        name: str,
        shown: list[Image.Image] | Video,
        question: str,
        device: str | None,
        dtype: str | None,
    ):
        place = device_of(device)
        if name == "pocket" or not sys.stderr.isatty():
            disable_progress_bar()  # of "Loading weights"
        self.name, self.shown, self.question = name, shown, question
        net, processor = load(name, **({"dtype": dtype} if dtype else {}))
        if isinstance(shown, Video):
            told, kinds = videos([shown]), ["video"]
            self.family = Family.of(net).reading({"pixel_values_videos": shown})
        else:
            told, kinds = {"images": [shown]}, ["image"] * len(shown)
            self.family = Family.of(net)
        self.net, self.processor = net.to(place), processor
        if not getattr(processor, "chat_template", None):
            raise ValueError(
                f"{type(processor).__name__} of this model has no chat template, so there "
                "is no way to know how it wants to be asked."
            )
        token_id = self.family.image_token_id
        named = (getattr(processor, f"{kind}_token", None) for kind in ("image", "video"))
        for token in (*named, processor.tokenizer.convert_ids_to_tokens(token_id)):
            if token and token in question:
                raise ValueError(
                    f"question={question!r}: {token} stands for the picture; leave it out."
                )
        prompt = processor.apply_chat_template(chat(question, kinds), add_generation_prompt=True)
        inputs = processor(**told, text=[prompt], return_tensors="pt")
        self.inputs = inputs.to(place)
        self.run: Session | None = None

    def notes(self) -> Iterator[str]:
        """Yield what the user should know before he trusts the answer, in sentences."""
        tokenizer = self.processor.tokenizer
        found = tokenizer(self.question, add_special_tokens=False, return_offsets_mapping=True)
        pairs = zip(found["input_ids"], found["offset_mapping"], strict=True)
        new = [self.question[a:b] for token, (a, b) in pairs if token == tokenizer.unk_token_id]
        if new:
            known = "a small vocabulary and drawn scenes alone" if self.name == "pocket" else "less"
            words = ", ".join(dict.fromkeys(new))
            yield f"{self.name} knows {known}; it does not know the words {words}."

    def compare(self, pruner: Pruner, max_new_tokens: int) -> dict[str, Any]:
        """Answer with every visual token and with the kept ones, both warmed up, and return answers
        and times."""
        for method in (None, pruner):
            self._answer(method, 2)
        full = self._answer(None, max_new_tokens)
        pruned = self._answer(pruner, max_new_tokens)
        faster = {
            stage: round(full[stage] / pruned[stage], 2) for stage in ("prefill_ms", "total_ms")
        }
        return {"full": full, "pruned": pruned, "times_faster": faster}

    def _answer(self, pruner: Pruner | None, max_new_tokens: int) -> dict[str, Any]:
        marks = Marks(self.net.device)
        begins = self.family.decoder.register_forward_pre_hook(marks.decoding)
        options = {"max_new_tokens": max_new_tokens, "do_sample": False, "streamer": marks}
        try:
            with pruner(self.net) if pruner else nullcontext() as run:
                marks.start()
                out = self.net.generate(**self.inputs, **options)
        finally:
            begins.remove()
        self.run = run
        new = out[0, self.inputs["input_ids"].shape[1] :]
        return {
            "answer": self.processor.decode(new, skip_special_tokens=True).strip(),
            "visual_tokens": self._visual(run),
            "new_tokens": len(new),
            **marks.stages(),
        }

    def _visual(self, run: Session | None) -> float:
        """Return the number of visual tokens that the language model sees: a mean over its layers,
        where they differ."""
        if run is None:
            return int((self.inputs["input_ids"] == self.family.image_token_id).sum())
        return round(run.layer_weighted[0], 1)

    def draw(self, path: Path) -> None:
        """Write a picture of what was kept in the last answer to this file."""
        (picture,), images = self.shown, self.run.images
        ranked = all(image.significance is not None for image in images)
        figure = Figure(figsize=(9 if ranked else 4.5, 4.2), layout="constrained")
        axes = figure.subplots(1, 1 + ranked, squeeze=False)[0]
        if ranked:
            plots.significance(picture, images, self.processor, ax=axes[0])
        plots.overlay(picture, images, self.processor, ax=axes[-1])
        partial = path.with_name(f".{path.name}.partial")
        try:
            figure.savefig(partial, format="png", dpi=150)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


class Marks:
    """A streamer that only notes the time: at the prompt, then at each token."""

    def __init__(self, device: torch.device):
        self.device = device
        self.tokens: list[float] = []
        self.begun = self.decoded = 0.0

    def now(self) -> float:
        """Return the time in seconds, after all that the device still has to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def start(self) -> None:
        """Note the time at which the answer begins."""
        self.begun = self.now()

    def decoding(self, *args: Any) -> None:
        """Note the time when the language model begins; this is a hook on it."""
        self.decoded = self.decoded or self.now()

    def put(self, value: Any) -> None:
        """Note the time of the prompt or of a token; a streamer is called so."""
        self.tokens.append(self.now())

    def end(self) -> None:
        """Do nothing at the end of the answer; a streamer is called so."""
        pass

    def stages(self) -> dict[str, float]:
        """Return the milliseconds of the vision tower with scoring and selection, of the prefill up
        to the first token, of the other tokens, and of all of it."""
        _, first, *_ = self.tokens  # the prompt comes before them
        last = self.tokens[-1]
        ends = (self.decoded - self.begun, first - self.decoded, last - first, last - self.begun)
        return {name: round(1000 * s, 2) for name, s in zip(TIMES, ends, strict=True)}


def show(result: dict[str, Any]) -> None:
    """Print the answers as a table, and what pruning saved."""
    table = Table(title=Text(result["question"]), caption="times in milliseconds")
    table.add_column("")
    table.add_column("answer", min_width=8)
    for column in ("tokens", *(name.removesuffix("_ms") for name in TIMES)):
        table.add_column(column, justify="right", no_wrap=True)
    weights = "" if result["weights"] == "none" else f" {result['weights']}"
    kept = f" {result['retention']:g}" if result["retention"] is not None else ""
    kept = kept if result["tokens"] is None else f" {result['tokens']} tokens"
    names = {
        "full": "all tokens",
        "pruned": f"{result['method']}{weights}{kept}",
    }
    for key, name in names.items():
        row = result[key]
        times = (f"{row[stage]:.1f}" for stage in TIMES)
        table.add_row(name, Text(row["answer"]), f"{row['visual_tokens']:g}", *times)
    Console(file=sys.stdout).print(table)
    faster = result["times_faster"]
    typer.echo(
        f"pruned: {faster['prefill_ms']:.2f} times as fast in prefill, "
        f"{faster['total_ms']:.2f} times in all (one run of each, after a warm-up)"
    )
