"""Accuracy against retention, over many questions and methods."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env
from PIL import Image
from tqdm import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from fopru.arguments import check_choice, check_integer
from fopru.evaluation import keys
from fopru.evaluation.asking import prompts
from fopru.evaluation.batch import Batch
from fopru.evaluation.controls import BLIND, same_picture
from fopru.evaluation.readings import described, legal_answers
from fopru.evaluation.settings import Method, Setting, distinct, settings
from fopru.evaluation.store import Store, check_results_file, provenance, weights_hash
from fopru.evaluation.tasks import Example, in_memory
from fopru.families import Family
from fopru.methods import Random
from fopru.videos import Video

COLUMNS = (
    *("id", "task", "variant", "image", "modality", "method", "retention", "budget"),
    *("attention", "positions", "seed", "kept", "layer_weighted", "tokens", "evidence"),
    *("found", "prediction", "answer"),
    *("exact", "begins", "formed", "choice", "margin", "metric", "score", "loglik", "loglik_open"),
    *("kl", "error"),
)
"""The columns of the table that `evaluate` returns."""


def launched() -> PartialState:
    """Return the processes of `accelerate launch` or `torchrun`, or this one alone."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


@torch.no_grad()
def evaluate(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    examples: Sequence[Example],
    methods: Iterable[Method] | Mapping[str, Method] = ("fopru", "fopru-row", "random"),
    retentions: Iterable[float] | None = None,
    positions: str | None = None,
    seeds: Iterable[int] = (0, 1, 2, 3, 4),
    blind: Iterable[str] = (),
    batch_size: int = 64,
    max_new_tokens: int = 8,
    out: str | Path | None = None,
    tokens: Iterable[int] | None = None,
) -> pd.DataFrame:
    """Ask every question with all visual tokens, and with those that each method keeps.

    Pictures and videos go through the vision tower once for the whole comparison. Where methods do
    not read the question, those on the same picture share its selection and its part of the KV
    cache.

    Under `accelerate launch` or `torchrun` each process answers for its share of the pictures, and
    all return the whole table. (On CPUs set ACCELERATE_USE_CPU=1.)

    Args:
        examples: Such as those of `fopru.pocket.benchmark`, `fopru.pocket.sample`, `read_jsonl` or
            `read_rows`.
        methods: Names from `fopru.METHODS` and `fopru.evaluation.controls`, pruners such as
            `fopru.FoPru(layer=3)`, or `{"label": pruner}` to say what the table calls each. A
            pruner's retention and seed are replaced by those below.
        retentions: Shares of each picture's visual tokens to keep, in (0, 1]; 0.5, 0.25 and 0.1
            where neither these nor `tokens` are given. A method that takes neither has one cell.
        positions: As for `fopru.Pruner`; None leaves each pruner its own.
        seeds: The seeds for the methods that have one.
        blind: "none", "grey" or "swapped" ask without the true picture.
        batch_size: Questions at a time; those on one picture stay together.
        max_new_tokens: The longest answer, in tokens.
        out: SQLite file to which answers go as they come. A run that was stopped goes on from it,
            and other runs of the same model can share it: a row is taken from the file only where
            question, answers, picture and settings are the same. The file knows a method by its
            name and arguments only: after a change of the method's code write to another file. A
            question whose picture could not be read is asked again by the next run.
        tokens: Numbers of visual tokens to keep of each picture instead of shares, as
            `fopru.Pruner(tokens=...)` takes them; `fopru.budgets.PAPERS` has those of papers.

    Returns:
        One row per question and setting, in their order: id, task, variant, image, modality
        ("image" or "video", whatever is shown instead), method, retention (the share; where a
        number of tokens was asked for, or nothing, its mean over the questions), budget (that
        number, else missing), attention (whose scored the tokens, "cls" or "received", of methods
        with that choice), positions ("reindex" or "preserve", as was done), seed, kept and tokens
        (visual tokens, kept and in all; inside the language model, those that its last layer sees),
        layer_weighted (mean over its layers of those seen), evidence (patches under it), found
        (share of these among the kept, NaN where there are none), prediction, answer, exact (the
        prediction is one of the right answers, in lower case), begins (it begins with one, where a
        word ends), formed (it is one of the legal answers: the example's `choices`), choice (a
        right answer is the likeliest of the legal ones, their ends not scored) and margin (by how
        much it leads all wrong ones, in nats), metric and score (by the example's own metric),
        loglik (of the right answer with its end, in nats) and loglik_open (without), kl (from the
        full model's distribution to this one's on the right answer, nats per token), error (why a
        picture could not be read, or cannot keep that number of tokens; else None). formed, choice
        and margin are missing where a question names no choices. "full" is the method with all
        tokens.

    Raises:
        UnsupportedModelError: There is no adapter for the model, or a method is undefined on it.
        ValueError: Bad arguments: no examples, an id twice, a question with a token that stands for
            pictures, what `settings` refuses, an unknown control, `Later` where a picture has one
            question only, "swapped" where a task has one picture only, several processes without
            `out`, or an `out` that is damaged, something else, or of another model or version.
        OSError: `out` cannot be written, or its folder is missing.

    Example:
        >>> questions = fopru.pocket.sample("reading", n=50)
        >>> table = fopru.evaluate(model, processor, questions, ["fopru", "random"], [0.25])
        >>> statistics.readings(table)  # what is known, said, and malformed
    """
    cells = settings(methods, retentions, positions, seeds, tokens)
    controls = distinct("blind", blind)
    for control in controls:
        check_choice("blind", control, tuple(BLIND))
    check_integer("batch_size", batch_size, minimum=1)
    check_integer("max_new_tokens", max_new_tokens, minimum=1)
    check_examples(examples)
    _check_shown(examples, cells, Family.of(model))
    processes = launched()
    if out is not None:
        check_results_file(Path(out))
    elif processes.num_processes > 1:
        raise ValueError(f"out=None: {processes.num_processes} processes need a file to share.")
    family = Family.of(model)
    for cell in cells:
        _check_cell(model, family, cell)
    texts = dict(zip((e.id for e in examples), prompts(processor, examples), strict=True))
    full = Setting("full", Random(1.0, positions=positions), 1.0)
    parts = [(examples, [full, *cells])]
    for control in controls:
        share = 0.0 if control == "none" else 1.0
        parts.append(
            (BLIND[control](examples), [replace(full, method=control, retention=share, blind=True)])
        )
    work = [(batch, wanted) for part, wanted in parts for batch in _batches(part, batch_size)]
    work = work[processes.process_index :: processes.num_processes]
    conditions = keys.conditions(model, processor, max_new_tokens)
    with processes.main_process_first():
        manifest = {**provenance(), "weights": weights_hash(model)} if out is not None else {}
        store = Store(out if out is not None else ":memory:", manifest)
    total = sum(len(batch) * len(wanted) for batch, wanted in work)
    quiet = not processes.is_main_process
    bar = tqdm(total=total, desc="evaluate", unit="answer", disable=quiet)
    places: dict[tuple[Any, ...], str | dict[str, Any]] = {}
    """Question and cell -> the key of its row, or the row of one that could not be asked."""
    with closing(store), bar:
        done = store.done()
        for some, wanted in work:
            whole, broken = _loaded(some)
            found = _keys(whole, wanted, texts, conditions)
            places |= found
            places |= {
                (e.id, *s.cell): _failed(e, s, family, why) for e, why in broken for s in wanted
            }
            missing = [s for s in wanted if any(found[e.id, *s.cell] not in done for e in whole)]
            if missing:
                batch = Batch(model, processor, whole, missing)
            for setting in missing:
                rows = _rows(batch, setting, max_new_tokens)
                store.add({found[row["id"], *setting.cell]: row for row in rows})
                bar.update(len(some))
            bar.update(len(some) * (len(wanted) - len(missing)))
        processes.wait_for_everyone()
        for other in gather_object([places]):
            places |= other
        rows = store.rows({place for place in places.values() if isinstance(place, str)})
    table = []
    for e in examples:
        order = [places[e.id, *s.cell] for _, wanted in parts for s in wanted]
        answers = [rows[place] if isinstance(place, str) else place for place in order]
        table += [{**row, "modality": e.modality} for row in answers]
    return _shared(pd.DataFrame(table, columns=COLUMNS), cells)


def _rows(batch: Batch, setting: Setting, max_new_tokens: int) -> Iterator[dict[str, Any]]:
    """A row for each question; that of a picture with which a budget cannot be kept says why."""
    refused = batch.refused(setting)
    for e in batch.examples:
        if e.id in refused:
            yield _failed(e, setting, batch.prompts.family, refused[e.id])
    left = [e for e in batch.examples if e.id not in refused]
    if refused and left:
        batch = Batch(batch.model, batch.processor, left, [setting])
    if left:
        yield from batch.rows(setting, max_new_tokens)


def _shared(table: pd.DataFrame, cells: Sequence[Setting]) -> pd.DataFrame:
    """The table with one share, its questions' mean, where none was asked for, to six digits."""
    free = table["method"].isin([cell.method for cell in cells if not cell.pruner.budgeted])
    budget, share = table["budget"].astype("Int64"), table["retention"].astype(float)
    cell = budget.astype("string").mask(free, "of " + table["method"])
    mean = share.groupby(cell).transform("mean").round(6)
    return table.assign(retention=share.where(cell.isna(), mean), budget=budget)


def check_examples(examples: Sequence[Example]) -> None:
    """Check that there are questions, each with an id of its own and with choices that can be read.

    Raises:
        ValueError: There are none, or one is not like this.
    """
    if isinstance(examples, str | Example) or not isinstance(examples, Sequence):
        raise ValueError(f"examples={examples!r}: must be a list of fopru.evaluation.Example.")
    if not examples:
        raise ValueError("examples=[]: there is no question to ask.")
    for e in examples:
        if not isinstance(e, Example):
            raise ValueError(f"examples: {e!r} is no fopru.evaluation.Example.")
        legal_answers(e)
    counts = Counter(e.id for e in examples)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise ValueError(f"examples: id {twice[0]!r} stands there {counts[twice[0]]} times.")


def _check_shown(examples: Sequence[Example], cells: Sequence[Setting], family: Family) -> None:
    """Check that the model and the methods take what the questions are about."""
    for e in examples:
        if e.modality == "video":
            family.reading({"pixel_values_videos": e.image})  # refused where there is no adapter
            continue
        for cell in cells:
            if cell.pruner.per == "clip":
                raise ValueError(
                    f"methods={cell.method!r} takes videos, and question {e.id!r} is about a "
                    "picture: evaluate the two apart."
                )
    lone = [e.id for group in by_picture(examples) if len(group) == 1 for e in group]
    later = [cell.method for cell in cells if cell.later]
    if later and lone:
        raise ValueError(
            f"methods={later[0]!r} needs several questions on each picture; {lone[0]!r} and "
            f"{len(lone) - 1} others have one to themselves."
        )


def _check_cell(model: PreTrainedModel, family: Family, cell: Setting) -> None:
    """Check that a setting can act on the model at all, before anything is computed."""
    cell.pruner.numbering(family)
    cell.pruner.taps(family)
    with cell.pruner(model) as session:
        if cell.shuffled and not session.shortens:
            raise ValueError(
                f"methods={cell.method!r}: tokens are dropped inside the language model, where "
                "their order is fixed. Shuffle a method that prunes before it."
            )
        if cell.later and session.shortens and "text" not in cell.pruner.needs:
            raise ValueError(
                f"methods={cell.method!r}: the same tokens are kept whatever is asked. Take a "
                "method that reads the question."
            )


def by_picture(examples: Sequence[Example]) -> list[list[Example]]:
    """Return the questions in groups, each of them on one picture."""
    pictures: dict[Any, list[Example]] = {}
    for e in examples:
        pictures.setdefault(same_picture(e), []).append(e)
    return list(pictures.values())


def _batches(examples: Sequence[Example], size: int) -> Iterator[list[Example]]:
    """Yield up to `size` questions at a time; all those on one picture stay together. A video is a
    batch of its own, since others may have more frames."""
    batch: list[Example] = []
    for group in by_picture(examples):
        if group[0].modality == "video":
            yield group
            continue
        if batch and len(batch) + len(group) > size:
            yield batch
            batch = []
        batch = [*batch, *group]
    if batch:
        yield batch


def _loaded(examples: Sequence[Example]) -> tuple[list[Example], list[tuple[Example, str]]]:
    """Return the questions with their pictures in memory as RGB, and those whose pictures cannot be
    read with the reason."""
    whole, broken = [], []
    pictures: dict[Any, Image.Image | Video | ValueError] = {}
    for e in examples:
        name = same_picture(e)
        if name not in pictures:
            try:
                pictures[name] = in_memory(e.image)
            except ValueError as error:
                pictures[name] = error
        found = pictures[name]
        if isinstance(found, ValueError):
            broken.append((e, str(found)))
        else:
            whole.append(replace(e, image=found))
    return whole, broken


def _keys(
    examples: Sequence[Example],
    settings: Sequence[Setting],
    texts: Mapping[str, str],
    conditions: str,
) -> dict[tuple[Any, ...], str]:
    """Return (question, cell) -> key, for questions whose pictures are in memory."""
    found = {}
    for group in by_picture(examples):
        pixels = keys.picture(group[0].image)
        together = [texts[e.id] for e in group]
        for e in group:
            content = keys.question(e, texts[e.id], pixels)
            for setting in settings:
                others = together if setting.later else None
                found[e.id, *setting.cell] = keys.digest(
                    content, others, setting.description(), conditions
                )
    return found


def _failed(e: Example, setting: Setting, family: Family, reason: str) -> dict[str, Any]:
    """Return the row of a question whose picture cannot be read."""
    return {
        **dict.fromkeys(COLUMNS),
        **described(e),
        **setting.row(family),
        "error": reason,
    }
