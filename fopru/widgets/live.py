"""Small figures that a reader moves: what they show is computed here, before the page is read.

Each function returns one figure, which tells its story untouched and needs no kernel in a page.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import anywidget
import pandas as pd
import torch
import traitlets
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from fopru.checking import row
from fopru.encoding import TowerPass, run_tower
from fopru.evaluation import evaluate
from fopru.evaluation.asking import inputs_of
from fopru.evaluation.batch import Batch
from fopru.evaluation.controls import mixed
from fopru.evaluation.evidence import cover, frame
from fopru.evaluation.settings import Setting
from fopru.evaluation.tasks import Example
from fopru.families import View
from fopru.methods import FoPru
from fopru.picking import ranked, top, unit
from fopru.plots import PALETTE
from fopru.redundancy import Fixed
from fopru.widgets.explorer import Everywhere, page_answer, page_source, picture

STRENGTHS = (0, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
"""How many mean queries are added to the key that becomes a sink."""

COUNTS = (1, 2, 3, 4, 6, 8, 10, 13, 16, 20, 25, 32, 40, 51, 64, 96, 128, 192, 256)
"""The stops of `known_and_said`, in visual tokens."""


class Live(anywidget.AnyWidget):
    """One figure that a reader moves. `live.js` draws it and has a function of the name `kind`."""

    _esm = page_source(("parts.js", "live.js"))
    _css = page_source(("parts.css", "live.css"))

    kind = traitlets.Unicode().tag(sync=True)
    caption = traitlets.Unicode().tag(sync=True)
    data = traitlets.Dict().tag(sync=True)


def _first(examples: Iterable[Example], told: Callable[[Example], Any], story: str) -> Any:
    """Return what is told of the first question of which something is."""
    for example in examples:
        if (found := told(example)) is not None:
            return found
    raise ValueError(f"examples: there is none {story}.")


def _seen(model: Any, processor: Any, example: Example) -> tuple[TowerPass, View, dict[str, Any]]:
    """Return the tower's pass over a picture, its one view, and what the page needs to draw it."""
    inputs = inputs_of(processor, [example]).to(model.device)
    tower = run_tower(model, inputs, [Everywhere(("received",)), FoPru()])
    (view,) = tower.grids[0].views
    under = cover(tower.grids[0], frame(example.image, processor), example.evidence) > 0.2
    shown = {"image": picture(example.image, processor, lossless=False)}
    shown |= {"height": view.height, "width": view.width}
    shown |= {"question": example.question, "answer": example.answer}
    return tower, view, shown | {"evidence": under.nonzero().flatten().tolist()}


def _answers(
    model: Any, processor: Any, example: Example, settings: Mapping[Any, Setting]
) -> dict[Any, dict[str, Any]]:
    """Return both readings of a question's answer under some settings."""
    batch = Batch(model, processor, [example], list(settings.values()))
    found = {}
    for name, setting in settings.items():
        with torch.no_grad():
            (read,) = batch.rows(setting, max_new_tokens=8)
        found[name] = page_answer(read) | {"open": read["loglik_open"]}
    return found


def _kept(indices: Iterable[int]) -> Setting:
    """Return the setting that keeps these tokens."""
    left = tuple(sorted(indices))
    return Setting("kept", Fixed(tokens=len(left), indices=left), 1.0)


def _row_order(scores: Tensor, view: View) -> Tensor:
    """Return the rows of a grid from the largest sum to the smallest."""
    return ranked(scores.double().view(view.height, view.width).sum(1).float())


def sink(model: PreTrainedModel, processor: ProcessorMixin, example: Example) -> Live:
    """Plant a sink: what patches receive, and what is kept at a quarter, as one key draws
    attention.

    The key of the patch that receives least, in the row that receives least, gets a multiple of
    the mean query added.

    Args:
        model: A model of a family with one grid of patches, whose tower attends globally.
        processor: The model's processor.
        example: The question whose picture is shown.
    """
    tower, view, shown = _seen(model, processor, example)
    (call,) = tower.attention[tower.family.block(None)]
    query, key, prefix = call.query[0].float(), call.key[0].float(), tower.family.n_prefix

    def received(place: int, strength: float) -> Tensor:
        moved = key.clone()  # (h, T, d)
        moved[:, prefix + place] += strength * query[:, prefix:].mean(1)
        logits = call.scaling * query @ moved.transpose(1, 2)  # (h, T, T)
        return logits.softmax(-1)[:, prefix:, prefix:].mean((0, 1))  # (N,)

    plain = received(0, 0)
    line = int(plain.view(view.height, view.width).sum(1).argmin())
    place = line * view.width + int(plain.view(view.height, view.width)[line].argmin())
    stops = [received(place, strength) for strength in STRENGTHS]
    data = {name: shown[name] for name in ("image", "height", "width")} | {
        "strengths": list(STRENGTHS),
        "place": place,
        "drawn": [scores[place].item() for scores in stops],
        "received": [
            (len(s) * s).clamp(0.1, 10).log10().mul(49).round().int().tolist() for s in stops
        ],
        "kept": {
            "rank": [top(scores, len(scores) // 4).tolist() for scores in stops],
            "row": [row(scores, view.height, view.width, 0.25).tolist() for scores in stops],
        },
    }
    return Live(
        kind="sink",
        data=data,
        caption="Live figure. A patch that nobody looks at becomes a sink: its key draws the "
        "attention of every query. Left: what each patch receives, as a multiple of an even share. "
        "Right: the quarter of the patches that stays. Drag the strength of the sink.",
    )


def rank_and_row(
    model: PreTrainedModel, processor: ProcessorMixin, examples: Sequence[Example]
) -> Live:
    """Put rank and row side by side at one budget, on one picture, with both readings of the
    answer.

    Args:
        model, processor: A model of a family with one grid of patches, and its processor.
        examples: The first of them is shown that a quarter of the tokens answers by rank and not
            by row.

    Raises:
        ValueError: There is no such question.
    """

    def told(example: Example) -> dict[str, Any] | None:
        tower, view, shown = _seen(model, processor, example)
        scores = FoPru().score(tower.scored().images[0])
        order, rows = ranked(scores).tolist(), _row_order(scores, view).tolist()
        settings = {
            (name, n): Setting(name, FoPru(tokens=n * view.width, strategy=name), 1.0)
            for name in ("rank", "row")
            for n in range(1, view.height + 1)
        }
        quarter = {key: s for key, s in settings.items() if key[1] == view.height // 4}
        tried = _answers(model, processor, example, quarter)
        if [answer["right"] for answer in tried.values()] != [True, False]:
            return None
        found = _answers(model, processor, example, settings)
        answers = {
            name: [found[name, n] for n in range(1, view.height + 1)] for name in ("rank", "row")
        }
        held = (scores / scores.sum()).tolist()
        return shown | {"order": order, "rows": rows, "answers": answers, "held": held}

    story = "that a quarter of the tokens answers by rank and not by row"
    return Live(
        kind="rank_and_row",
        data=_first(examples, told, story),
        caption="Live figure. The same scores and the same number of tokens, kept patch by patch "
        "(rank) and row by row (row). Orange: the evidence. Below each picture is what the model "
        "then answers. Drag the number of rows that are paid for.",
    )


def order_and_position(
    model: PreTrainedModel, processor: ProcessorMixin, examples: Sequence[Example]
) -> Live:
    """Show kept tokens as the language model reads them, in order or mixed, with their own ids or
    with new ones.

    Args:
        model, processor: A model of a family with one grid of patches, and its processor.
        examples: The first of them is shown that a tenth of the tokens answers with own ids and
            not with new ones.

    Raises:
        ValueError: There is no such question.
    """

    def told(example: Example) -> dict[str, Any] | None:
        settings = {}
        for share in (0.25, 0.1, 0.05):
            for ids in ("reindex", "preserve"):
                pruner = FoPru(share, positions=ids)
                settings[share, ids, "order"] = Setting("order", pruner, share)
                settings[share, ids, "mixed"] = Setting("mixed", pruner, share, shuffled=True)
        tenth = {key: s for key, s in settings.items() if key[0] == 0.1 and key[2] == "order"}
        tried = _answers(model, processor, example, tenth)
        if [answer["right"] for answer in tried.values()] != [False, True]:
            return None
        tower, _, shown = _seen(model, processor, example)
        kept = {
            str(share): FoPru(share).compact(tower.scored()).images[0].kept.tolist()
            for share in (0.25, 0.1, 0.05)
        }
        draws = {share: mixed(len(some)).tolist() for share, some in kept.items()}
        found = _answers(model, processor, example, settings)
        answers = {" ".join(map(str, key)): answer for key, answer in found.items()}
        before = inputs_of(processor, [example])["input_ids"][0].tolist()
        first = before.index(tower.family.image_token_id)
        return shown | {"kept": kept, "mixed": draws, "answers": answers, "first": first}

    story = "that a tenth of the tokens answers with own ids and not with new ones"
    return Live(
        kind="order_and_position",
        data=_first(examples, told, story),
        caption="Live figure. The kept patches of one picture, in the order in which the language "
        "model reads them, each with its position id. Change how many stay, the ids and the order.",
    )


def two_duplicates(
    model: PreTrainedModel, processor: ProcessorMixin, examples: Sequence[Example]
) -> Live:
    """Delete one or both of two patches that say the same, where nothing else says it.

    Args:
        model, processor: A model of a family with one grid of patches, and its processor.
        examples: The first of them is shown whose evidence has two patches with a cosine of at
            least 0.98, either of which answers, and without both of which the answer is wrong.

    Raises:
        ValueError: There is no such question.
    """

    def told(example: Example) -> dict[str, Any] | None:
        tower, _, shown = _seen(model, processor, example)
        share = cover(tower.grids[0], frame(example.image, processor), example.evidence)
        places = (share > 0.2).nonzero().flatten()
        if not 2 <= len(places) <= 12:
            return None
        features = unit(tower.scored().images[0].features[places])
        alike = (features @ features.T).fill_diagonal_(-1)
        one, other = divmod(int(alike.argmax()), len(places))
        if alike.max() < 0.98:
            return None
        pair = [places[one].item(), places[other].item()]
        rest = (share == 0).nonzero().flatten().tolist()
        left = {"both": pair, "A": pair[:1], "B": pair[1:], "none": []}
        settings = {name: _kept([*rest, *some]) for name, some in left.items()}
        found = _answers(model, processor, example, settings)
        if [answer["right"] for answer in found.values()] != [True, True, True, False]:
            return None
        return shown | {"rest": rest, "pair": pair, "answers": found, "cosine": alike.max().item()}

    story = "with two duplicates, either of which answers"
    return Live(
        kind="two_duplicates",
        data=_first(examples, told, story),
        caption="Live figure. Of the evidence only two patches are left, A and B, which are nearly "
        "the same vector; the rest of the picture stays. Delete one of them, or both.",
    )


def break_even(tables: Mapping[str, pd.DataFrame], kept: float = 0.25) -> Live:
    """Let the reader give the times of an answer, and say what pruning saves of it.

    Args:
        tables: Tables of `fopru.measure` to start from, by the names that the reader sees; they
            have FoPru at this retention.
        kept: The share of the visual tokens that is kept at first.
    """
    starts = []
    for name, table in tables.items():
        full = table[table.method == "full"].set_index("stage")
        visual, text = int(full.visual.iloc[0]), int(full.tokens.iloc[0] - full.visual.iloc[0])
        start = {"name": name, "visual": visual, "text": text, "kept": kept}
        start |= full.seconds[["vision", "prefill", "decode"]].to_dict()
        added = table.query("method == 'fopru' and retention == @kept").set_index("stage").seconds
        start["overhead"] = float(added[["scoring", "selection", "compaction"]].sum())
        starts.append(start | {"answer": int(full.new_tokens.max())})
    return Live(
        kind="break_even",
        data={"starts": starts, "colors": list(PALETTE[:4])},
        caption="Live figure. The time of one answer, stage by stage, with all visual tokens and "
        "with some of them. It begins with stored times; put in your own. The prefill is taken as "
        "proportional to the length of the prompt, and a step of decoding as always the same.",
    )


def known_and_said(
    model: PreTrainedModel, processor: ProcessorMixin, examples: Sequence[Example]
) -> Live:
    """Show what is said and how likely each legal answer is, over the number of kept tokens.

    Args:
        model, processor: A model of a family with one grid of patches, and its processor.
        examples: Questions that name few legal answers. The first of them is shown that is known
            from a tenth of FoPru's tokens and not said.

    Raises:
        ValueError: There is no such question.
    """
    tried = evaluate(model, processor, examples, ["fopru"], [0.1], max_new_tokens=8)
    tried = tried[(tried.method == "fopru") & tried.choice.eq(True) & tried.formed.eq(False)]

    def told(example: Example) -> dict[str, Any] | None:
        if example.id not in set(tried.id):
            return None
        tower, view, shown = _seen(model, processor, example)
        order = ranked(FoPru().score(tower.scored().images[0])).tolist()
        counts = [count for count in COUNTS if count <= view.n_tokens]
        read = [replace(example, id=name, answer=name, also=()) for name in example.choices]
        rows = evaluate(model, processor, read, ["fopru"], tokens=counts, max_new_tokens=8)
        rows = rows[rows.method == "fopru"].set_index(["id", "kept"])
        answers = []
        for count in counts:
            legal = {name: math.exp(rows.loglik_open[name, count]) for name in example.choices}
            answers.append(
                page_answer(rows.loc[example.answer, count]) | {"choices": list(legal.items())}
            )
        return shown | {"order": order, "counts": counts, "answers": answers}

    return Live(
        kind="known_and_said",
        data=_first(examples, told, "that is known from a tenth of FoPru's tokens and not said"),
        caption="Live figure. What the model writes, and how likely each legal answer is when it "
        "is read out to the model, as FoPru keeps fewer tokens. Drag the number of tokens.",
    )
