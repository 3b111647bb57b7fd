"""Accuracy against retention, over many questions and methods."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from PIL import Image
from tqdm import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from fopru.evaluation.batch import Batch, Setting
from fopru.evaluation.controls import Oracle, grey, swapped
from fopru.evaluation.store import Store, provenance, weights_hash
from fopru.evaluation.tasks import Example
from fopru.families import Family
from fopru.methods import Random
from fopru.pictures import load_image
from fopru.pruner import METHODS, check_choice

BLIND = {"grey": grey, "swapped": swapped}


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
    for method in methods:
        check_choice("methods", method, (*METHODS, "oracle"))
        cls = Oracle if method == "oracle" else METHODS[method]
        seeded = "seed" in {field.name for field in fields(cls)}
        for retention in retentions:
            for seed in seeds if seeded else (0,):
                arguments = {"seed": seed} if seeded else {}
                pruner = cls(retention, positions=positions, **arguments)
                cells.append(Setting(method, pruner, retention, seed))
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

    Pictures go through the vision tower once for the whole comparison; questions on the same
    picture share its selection where they stand next to each other.

    Args:
        examples: as of `fopru.pocket.benchmark` or `fopru.pocket.sample`.
        methods: names from `fopru.METHODS`, or "oracle", which keeps the tokens under the evidence.
        retentions: shares of each picture's visual tokens to keep, in (0, 1].
        positions: as for `fopru.Pruner`.
        seeds: those of methods that have one.
        blind: "grey" or "swapped" ask, with all tokens, about another picture.
        batch_size: questions at a time.
        max_new_tokens: longest answer.
        out: SQLite file to which answers go as they come; a run that was stopped goes on from it,
            and more methods can be added to it.

    Returns:
        One row per question and setting: id, task, variant, image, method, retention, positions
        ("reindex" or "preserve", as was done), seed, kept
        and tokens (visual tokens, kept and in all; inside the language model, those that its last
        layer sees), layer_weighted (mean over its layers of those seen), evidence (patches under
        it), found (share of these among the kept, NaN where there are none), prediction, answer,
        correct, score (by the example's metric), loglik (of the right answer with its end, in
        nats), error (why a picture could not be read, else None). "full" is the method with all
        tokens.

    Raises:
        ValueError: an unknown method or control, a retention outside (0, 1] or twice, or an `out`
            that is damaged or holds results of another model or version.
    """
    for control in blind:
        check_choice("blind", control, tuple(BLIND))
    cells = settings(methods, retentions, positions, seeds)
    full = Setting("full", Random(1.0, positions=positions), 1.0)
    parts = [(examples, [full, *cells])]
    parts += [(BLIND[c](examples), [replace(full, method=c)]) for c in blind]
    total = len(examples) * sum(len(asked) for _, asked in parts)
    numbering = Family.of(model).positions
    manifest = {**provenance(), "weights": weights_hash(model)} if out is not None else {}
    store = Store(out if out is not None else ":memory:", manifest)
    done = store.done()
    with tqdm(total=total, desc="evaluate", unit="answer") as bar, closing(store):
        for part, asked in parts:
            for start in range(0, len(part), batch_size):
                some = part[start : start + batch_size]
                left = [s for s in asked if any(s.key(e, numbering) not in done for e in some)]
                whole, broken = _loaded(some)
                if whole and left:
                    batch = Batch(model, processor, whole, left)
                for setting in left:
                    rows = list(batch.rows(setting, max_new_tokens)) if whole else []
                    rows += [_failed(e, setting, numbering, reason) for e, reason in broken]
                    store.add(rows)
                bar.update(len(some) * len(asked))
        return store.frame()


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


def _failed(e: Example, setting: Setting, positions: str, reason: str) -> dict[str, Any]:
    names = ("id", "method", "retention", "positions", "seed")
    return {
        **dict(zip(names, setting.key(e, positions), strict=True)),
        "task": e.task,
        "image": e.scene.get("image_id", e.id),
        "answer": e.answer,
        "error": reason,
    }
