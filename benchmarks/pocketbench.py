"""PocketBench's questions, asked of every training of the pocket model under every method:
`pocketbench.parquet`, `beyond.parquet` and `validation.parquet` in `data/results/`.

    python benchmarks/pocketbench.py ask 0              # two hours on one core; so 1, so 2
    python benchmarks/pocketbench.py ask 0 curves later # these parts only
    python benchmarks/pocketbench.py write              # the tables, where everything is answered

Answers go to one database for each training in `~/.cache/fopru/pocketbench`, so that a stopped run
goes on and processes can share the work. `PARTS` says what is asked, and why.
"""

import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pandas as pd
import torch

import fopru
from fopru.cli.common import keep
from fopru.encoding import EncodedImage
from fopru.evaluation import Example
from fopru.evaluation.controls import BLIND, CONTROLS, Later, Shuffled
from fopru.in_llm import InLLMPruner
from fopru.methods.divprune import DivPrune
from fopru.picking import owners
from fopru.pocket import scenes
from fopru.pruned import Merged
from fopru.pruner import POSITIONS, WEIGHTS

sys.path.append(str(Path(__file__).parents[1] / "data"))
from making.score import TRAININGS

RESULTS = Path(__file__).parents[1] / "data" / "results"
STORE = Path("~/.cache/fopru/pocketbench").expanduser()

RANGE = (0.75, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05, 0.02, 1 / 256)
FOUR = (0.5, 0.25, 0.1, 0.05)
TWO = (0.25, 0.1)
ROWS = (1 / 16, 2 / 16, 3 / 16, 4 / 16)
INSIDE = tuple(name for name, kind in fopru.METHODS.items() if issubclass(kind, InLLMPruner))
BEFORE = tuple(
    name
    for name, kind in fopru.METHODS.items()
    if name not in INSIDE and "view" in kind.shares and kind.budgeted
)
MAIN = ("fopru", "fopru-row", "cls", "divprune", "dpp", "vispruner", "tome", "uniform")
OTHERS = tuple(name for name in BEFORE if name not in (*MAIN, "random"))
TUNED = (*MAIN, "cluster-mean", "random")
CHOSEN_FROM = ("fopru", "divprune", "dpp", "uniform")


class Constant(DivPrune):
    """DivPrune's tokens, all of about the same weight."""

    def merge(self, image: EncodedImage, k: int) -> Merged:
        kept, n = self.select(image, k).cpu(), image.grid.n_tokens
        return Merged(kept, image.features[kept], torch.arange(n) % k)


class Dealt(DivPrune):
    """DivPrune's tokens, with each other's weights."""

    def merge(self, image: EncodedImage, k: int) -> Merged:
        kept = self.select(image, k).cpu()
        order = torch.randperm(k, generator=torch.Generator().manual_seed(0))
        return Merged(kept, image.features[kept], order[owners(image.features, kept).cpu()])


@dataclass(frozen=True)
class Part:
    """One call of `fopru.evaluate`."""

    methods: tuple | dict
    retentions: tuple[float, ...]
    positions: str | None
    seeds: tuple[int, ...] = (0,)
    blind: tuple[str, ...] = ()
    split: str = "test"
    one_in: int = 2
    """One in so many pictures of each kind is asked about, the first ones: all questions under all
    settings, three times over, would take two cores a night. (Not every second one: variants of a
    question take turns from one picture to the next.)"""
    tasks: tuple[str, ...] = tuple(scenes.TASKS)


def weighted(names: tuple[str, ...], weights: str) -> tuple[fopru.Pruner, ...]:
    kinds = {**fopru.METHODS, **CONTROLS}
    return tuple(kinds[name](weights=weights) for name in names)


FOPRU = fopru.FoPru()
WEIGHTED = [w for w in product(POSITIONS, WEIGHTS) if w[1] != "none"]
"""Position ids, and the weights of kept tokens."""
PICKS = {"cells": fopru.Cells(), "mmr": fopru.MMR(), "halves": fopru.Halves()}
SAME_MEAN = tuple(k / 256 for k in (83, 99, 112, 125))
"""What FastV at 10 and 25 % (83, 112) and PyramidDrop at 5 and 15 % (99, 125) keep of 256 tokens in
the mean over the eight layers of the decoder: as many, before it. A decoder of another depth has
other means."""
PARTS = {
    # the main methods and the controls over the whole range
    "curves": [
        Part((*MAIN, *INSIDE, *CONTROLS), RANGE, "reindex", one_in=4),
        Part(("random",), RANGE, "reindex", (0, 1, 2), one_in=4),
        Part(("uniform",), FOUR, "reindex", blind=(*BLIND,)),
    ],
    # all methods, with both kinds of position ids
    "methods": [
        *(Part((*MAIN, *INSIDE, *CONTROLS), FOUR, positions) for positions in POSITIONS),
        *(Part(OTHERS, FOUR, positions, one_in=4) for positions in POSITIONS),
        *(Part(("random",), FOUR, positions, (0, 1, 2)) for positions in POSITIONS),
        *(Part((Shuffled(FOPRU),), FOUR, positions) for positions in POSITIONS),
    ],
    # kept tokens that count as those they stand for; what chapter 9 chooses from at four budgets
    "weights": [
        *(
            Part(weighted((*BEFORE, "oracle"), weights), TWO, positions, one_in=4)
            for positions, weights in WEIGHTED
        ),
        *(
            Part(weighted(CHOSEN_FROM, weights), (0.5, 0.05), positions, one_in=4)
            for positions, weights in WEIGHTED
            if weights == "mass"
        ),
    ],
    # what the published text leaves open
    "readings": [
        Part(
            tuple(
                fopru.FoPru(axis=axis, scores=scores)
                for axis in ("variance", "received", "given")
                for scores in ("probabilities", "logits")
                if (axis, scores) != ("variance", "probabilities")
            ),
            TWO,
            "reindex",
        ),
    ],
    # one token and five, of a benchmark that hardly looks and of one that does
    "five tokens": [
        Part(
            methods,
            (0.02, 1 / 256),
            "reindex",
            seeds,
            (*BLIND,),
            one_in=1,
            tasks=("knowledge", "diagrams"),
        )
        for methods, seeds in ((("fopru", "oracle"), (0,)), (("random",), (0, 1, 2)))
    ],
    # rank and row at the same number of tokens
    "rows": [Part(("fopru", "fopru-row"), ROWS, positions) for positions in POSITIONS],
    # as many tokens as the methods inside the language model keep in the mean over its layers
    "same mean": [Part(("fopru", "divprune", "uniform", "random"), SAME_MEAN, "reindex")],
    # is it the masses, or any weights?
    "copies": [
        Part(
            {
                "divprune-constant": Constant(weights="mass"),
                "divprune-dealt": Dealt(weights="mass"),
            },
            TWO,
            "reindex",
        )
    ],
    # FoPru's score under other selectors
    "composed": [
        Part(
            {
                name: fopru.Compose(scorer=fopru.FoPru(axis="received"), pick=pick)
                for name, pick in PICKS.items()
            },
            TWO,
            "reindex",
        )
    ],
    # another question decides
    "later": [
        Part(tuple(Later(fopru.METHODS[n]()) for n in (*INSIDE, "cdpruner")), TWO, "reindex")
    ],
    # what training never showed together, and what is likely and absent
    "beyond": [
        *(
            Part((*MAIN, "random", "oracle"), TWO, positions, (0,), (*BLIND,), split, one_in)
            for split, one_in in (("combinations", 4), ("hallucination", 1))
            for positions in POSITIONS
        ),
        *(
            Part(weighted((*MAIN, "random"), weights), TWO, positions, (0,), (), "hallucination", 1)
            for positions, weights in WEIGHTED
        ),
    ],
    # what to recommend is chosen on the validation split
    "validation": [
        Part(weighted(TUNED, weights), TWO, positions, split="validation", one_in=4)
        for positions, weights in product(POSITIONS, WEIGHTS)
    ],
}
APART = ("beyond", "validation")
"""The parts that have a table of their own, beside `pocketbench.parquet`."""


def chosen(questions: list[Example], one_in: int) -> set[str]:
    """The first pictures of each kind, one in so many."""
    kinds = defaultdict(list)
    for name in dict.fromkeys(e.scene["image_id"] for e in questions):
        kinds[name.rpartition("-")[0]].append(name)
    return {name for names in kinds.values() for name in names[: len(names) // one_in]}


def ask(training: int, name: str) -> pd.DataFrame:
    """The answers of one training to one part."""
    folder = TRAININGS[training]
    model, processor = fopru.load(fopru.pocket.folder(folder))
    parts = []
    for part in PARTS[name]:
        questions = fopru.pocket.benchmark(part.split)
        some = chosen(questions, part.one_in)
        rows = fopru.evaluate(
            model,
            processor,
            [e for e in questions if e.scene["image_id"] in some and e.task in part.tasks],
            part.methods,
            part.retentions,
            part.positions,
            part.seeds,
            part.blind,
            out=STORE / f"{folder}.sqlite",
        )
        parts.append(rows.assign(split=part.split))
    return pd.concat(parts, ignore_index=True).assign(training=training)


def guesser(asked: pd.DataFrame, examples: dict[str, Example], n: int = 7000) -> pd.DataFrame:
    """Rows of one who reads the question only, and gives of its legal answers the one that was most
    often right where it could be given, in n fresh scenes a task: to the same words before the
    question mark; where these never came, to questions of its kind."""
    right, offered = defaultdict(Counter), defaultdict(Counter)

    def keys(e: Example) -> tuple:
        return e.question.partition("?")[0], (e.task, e.scene["variant"])

    for e in (e for task in asked.task.unique() for e in fopru.pocket.sample(task, n, seed=4242)):
        for key in keys(e):
            right[key][e.answer] += 1
            offered[key].update(e.choices)

    def guess(e: Example) -> str:
        key = next(key for key in keys(e) if key in right)
        return max(e.choices, key=lambda a: right[key][a] / max(1, offered[key][a]))

    rows = asked[asked.method == "full"].drop_duplicates(["id", "training"]).copy()
    guesses = [guess(examples[name]) for name in rows.id]
    hits = [said == row.answer for said, row in zip(guesses, rows.itertuples(), strict=True)]
    unknown = dict.fromkeys(["margin", "loglik", "loglik_open", "kl"], float("nan"))
    return rows.assign(
        method="guess",
        retention=0.0,
        kept=0,
        layer_weighted=0.0,
        found=float("nan"),
        prediction=guesses,
        score=[float(hit) for hit in hits],
        formed=True,
        **dict.fromkeys(["exact", "begins", "choice"], hits),
        **unknown,
    )


def small(results: pd.DataFrame) -> pd.DataFrame:
    """Without repetition, rounded to a thousandth, which is more than any figure shows, and without
    what follows from the method or is nothing here."""
    keys = ["training", "split", "id", "method", "retention", "positions", "seed"]
    results = results.drop_duplicates(keys)
    results = results.drop(columns=["modality", "budget", "attention", "error"])
    floats = ["found", "loglik", "loglik_open", "margin", "kl", "layer_weighted", "score"]
    rounded = {name: results[name].astype("float32").round(3) for name in floats}
    return results.assign(**rounded)


def write() -> None:
    """The tables, of all trainings."""
    tables = defaultdict(list)
    for training, name in product(range(len(TRAININGS)), PARTS):
        tables[name if name in APART else "pocketbench"].append(ask(training, name))
    whole = {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()}
    examples = {e.id: e for e in fopru.pocket.benchmark("test")}
    test = whole["pocketbench"]
    whole["pocketbench"] = pd.concat([test, guesser(test, examples)], ignore_index=True)
    for name, table in whole.items():
        keep(small(table), RESULTS / f"{name}.parquet")


def main(words: list[str]) -> None:
    STORE.mkdir(parents=True, exist_ok=True)
    torch.set_grad_enabled(False)
    match words:
        case ["ask", training, *names] if training in map(str, range(len(TRAININGS))):
            for name in names or PARTS:
                ask(int(training), name)
        case ["write"]:
            write()
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
