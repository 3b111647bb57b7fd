"""Accuracy against retention, over many questions and methods."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from PIL import Image
from tqdm import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from fopru.arguments import check_choice
from fopru.evaluation.batch import Batch, Setting
from fopru.evaluation.controls import BLIND, CONTROLS
from fopru.evaluation.store import KEY, Store, provenance, weights_hash
from fopru.evaluation.tasks import Example
from fopru.families import Family
from fopru.in_llm import InLLMPruner
from fopru.methods import Random
from fopru.pictures import load_image
from fopru.pruner import METHODS, Pruner


def launched() -> PartialState:
    """The processes of `accelerate launch` or `torchrun`, or this one alone."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def known() -> dict[str, type[Pruner]]:
    """All that `methods` may name, controls and variants included."""
    table = {**METHODS, **CONTROLS}
    for name, cls in METHODS.items():
        inside = issubclass(cls, InLLMPruner)
        if inside or "text" in cls.needs:
            table[f"{name}-later"] = cls
        if not inside:
            table[f"{name}-shuffled"] = cls
    selecting = {name: cls for name, cls in {**METHODS, **CONTROLS}.items() if cls.selects()}
    return table | {f"{name}-mass": cls for name, cls in selecting.items()}


def settings(
    methods: Sequence[str],
    retentions: Sequence[float],
    positions: str | None = None,
    seeds: Sequence[int] = (0,),
) -> list[Setting]:
    """Every method at every retention, and those that draw at random with every seed.

    Raises:
        ValueError: an unknown method, or a retention outside (0, 1] or twice.
    """
    if len(set(retentions)) < len(retentions):
        raise ValueError(f"retentions={list(retentions)}: each may stand there once.")
    cells = []
    there = known()
    for method in methods:
        check_choice("methods", method, tuple(there))
        cls = there[method]
        variant = {v: method.endswith(f"-{v}") for v in ("later", "shuffled")}
        seeded = "seed" in {field.name for field in fields(cls)}
        for retention in retentions:
            for seed in seeds if seeded else (0,):
                arguments = {"seed": seed} if seeded else {}
                if method.endswith("-mass"):
                    arguments["weights"] = "mass"
                pruner = cls(retention, positions=positions, **arguments)
                cells.append(Setting(method, pruner, retention, seed, **variant))
    return cells


@torch.no_grad()
def evaluate(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    examples: Sequence[Example],
    methods: Sequence[str] = ("fopru", "fopru-row", "random"),
    retentions: Sequence[float] = (0.5, 0.25, 0.1),
    positions: str | None = None,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    blind: Sequence[str] = (),
    batch_size: int = 64,
    max_new_tokens: int = 8,
    out: str | Path | None = None,
) -> pd.DataFrame:
    """Ask every question with all visual tokens, and with those that each method keeps.

    Pictures go through the vision tower once for the whole comparison. Where methods do not read
    the question, those on the same picture share its selection and its part of the KV cache.

    Under `accelerate launch` or `torchrun` each process answers for its share of the pictures, and
    all return the whole table. (On CPUs set ACCELERATE_USE_CPU=1.)

    Args:
        examples: as of `fopru.pocket.benchmark`, `fopru.pocket.sample` or `read_jsonl`.
        methods: names from `fopru.METHODS` and `fopru.evaluation.controls`.
        retentions: shares of each picture's visual tokens to keep, in (0, 1].
        positions: as for `fopru.Pruner`.
        seeds: those of methods that have one.
        blind: "none", "grey" or "swapped" ask without the true picture.
        batch_size: questions at a time; those on one picture stay together.
        max_new_tokens: longest answer.
        out: SQLite file to which answers go as they come; a run that was stopped goes on from it,
            and more methods can be added to it.

    Returns:
        One row per question and setting, in their order: id, task, variant, image, method,
        retention, positions ("reindex" or "preserve", as was done), seed, kept and tokens (visual
        tokens, kept and in all; inside the language model, those that its last layer sees),
        layer_weighted (mean over its layers of those seen), evidence (patches under it), found
        (share of these among the kept, NaN where there are none), prediction, answer, correct,
        metric and score (by the example's own metric), loglik (of the right answer with its end, in
        nats), kl (from the full model's distribution to this one's on the right answer, nats per
        token), error (why a picture could not be read, else None). "full" is the method with all
        tokens.

    Raises:
        UnsupportedModelError: a family whose pictures are not one row of pixels each, or with
            M-RoPE.
        ValueError: an unknown method or control, a retention outside (0, 1] or twice, an id twice,
            a "-later" method where a picture has one question only, several processes without
            `out`, or an `out` that is damaged or holds results of another model or version.
    """
    for control in blind:
        check_choice("blind", control, tuple(BLIND))
    cells = settings(methods, retentions, positions, seeds)
    _check_examples(examples, cells)
    full = Setting("full", Random(1.0, positions=positions), 1.0)
    parts = [(examples, [full, *cells])]
    for control in blind:
        share = 0.0 if control == "none" else 1.0
        asked = [replace(full, method=control, retention=share, blind=True)]
        parts.append((BLIND[control](examples), asked))
    work = [(batch, asked) for part, asked in parts for batch in _batches(part, batch_size)]
    processes = launched()
    if processes.num_processes > 1 and out is None:
        raise ValueError(f"out=None: {processes.num_processes} processes need a file to share.")
    work = work[processes.process_index :: processes.num_processes]
    total = sum(len(batch) * len(asked) for batch, asked in work)
    family = Family.of(model)
    with processes.main_process_first():
        manifest = {**provenance(), "weights": weights_hash(model)} if out is not None else {}
        store = Store(out if out is not None else ":memory:", manifest)
    done = store.done()
    quiet = not processes.is_main_process
    bar = tqdm(total=total, desc="evaluate", unit="answer", disable=quiet)
    with closing(store), bar:
        for some, asked in work:
            left = [s for s in asked if any(s.key(e, family) not in done for e in some)]
            whole, broken = _loaded(some)
            if whole and left:
                batch = Batch(model, processor, whole, left)
            bar.update(len(some) * (len(asked) - len(left)))
            for setting in left:
                rows = list(batch.rows(setting, max_new_tokens)) if whole else []
                rows += [_failed(e, setting, family, reason) for e, reason in broken]
                store.add(rows)
                bar.update(len(some))
        processes.wait_for_everyone()
        return _ordered(store.frame(), examples, [s for _, asked in parts for s in asked])


def _check_examples(examples: Sequence[Example], cells: Sequence[Setting]) -> None:
    counts = Counter(e.id for e in examples)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise ValueError(f"examples: id {twice[0]!r} stands there {counts[twice[0]]} times.")
    alone = [e.id for group in _by_picture(examples) if len(group) == 1 for e in group]
    later = [cell.method for cell in cells if cell.later]
    if later and alone:
        raise ValueError(
            f"methods={later[0]!r} needs several questions on each picture; {alone[0]!r} and "
            f"{len(alone) - 1} others have one to themselves."
        )


def _by_picture(examples: Sequence[Example]) -> list[list[Example]]:
    pictures: dict[Any, list[Example]] = {}
    for e in examples:
        key = e.image if isinstance(e.image, Path) else id(e.image)
        pictures.setdefault(key, []).append(e)
    return list(pictures.values())


def _batches(examples: Sequence[Example], size: int) -> Iterator[list[Example]]:
    """Up to `size` questions each; all those on one picture stay together."""
    batch: list[Example] = []
    for group in _by_picture(examples):
        if batch and len(batch) + len(group) > size:
            yield batch
            batch = []
        batch = [*batch, *group]
    if batch:
        yield batch


def _ordered(
    rows: pd.DataFrame, examples: Sequence[Example], asked: Sequence[Setting]
) -> pd.DataFrame:
    """Question by question, each in the order of its settings; what else there is comes last."""
    questions = {e.id: i for i, e in enumerate(examples)}
    cells = {(s.method, s.retention, s.seed): i for i, s in enumerate(asked)}
    keys = zip(rows["method"], rows["retention"], rows["seed"], strict=True)
    places = pd.DataFrame(
        {"question": rows["id"].map(questions), "cell": [cells.get(key) for key in keys]}
    )
    order = places.sort_values(["question", "cell"], kind="stable").index
    return rows.loc[order].reset_index(drop=True)


def _loaded(examples: Sequence[Example]) -> tuple[list[Example], list[tuple[Example, str]]]:
    """Pictures read from their files; those that cannot be, with the reason."""
    whole, broken = [], []
    pictures: dict[Path, Image.Image | ValueError] = {}
    for e in examples:
        if isinstance(e.image, Image.Image):
            whole.append(e)
            continue
        if e.image not in pictures:
            try:
                pictures[e.image] = load_image(e.image)
            except ValueError as error:
                pictures[e.image] = error
        found = pictures[e.image]
        if isinstance(found, ValueError):
            broken.append((e, str(found)))
        else:
            whole.append(replace(e, image=found))
    return whole, broken


def _failed(e: Example, setting: Setting, family: Family, reason: str) -> dict[str, Any]:
    return {
        **dict(zip(KEY, setting.key(e, family), strict=True)),
        "task": e.task,
        "image": e.scene.get("image_id", e.id),
        "answer": e.answer,
        "error": reason,
    }
