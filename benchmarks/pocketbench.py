"""PocketBench's questions, asked of the pocket model under every method: `pocketbench.parquet` and
`validation.parquet` in `data/results/`.

    python benchmarks/pocketbench.py               # about 90 minutes on one core
    python benchmarks/pocketbench.py curves copies # these parts only, as a second process beside it

Answers go to a database in `~/.cache/fopru`, so that a stopped run goes on and processes can share
the work; a call without parts writes the tables. `PARTS` says what is asked, and why.
"""

import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
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
from fopru.pruned import Merged

RESULTS = Path(__file__).parents[1] / "data" / "results"
STORE = Path("~/.cache/fopru/pocketbench.sqlite").expanduser()

RANGE = (0.75, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05, 0.02, 1 / 256)
FOUR = (0.5, 0.25, 0.1, 0.05)
ROWS = (1 / 16, 2 / 16, 3 / 16, 4 / 16)
INSIDE = tuple(name for name, kind in fopru.METHODS.items() if issubclass(kind, InLLMPruner))
BEFORE = tuple(
    name
    for name, kind in fopru.METHODS.items()
    if name not in INSIDE and "view" in kind.shares and kind.budgeted
)
SAME_MEAN = tuple(k / 256 for k in (99, 125, 141, 160))
"""What PyramidDrop at 5 and 15 % (99, 125) and FastV at 10 and 25 % (141, 160) keep of 256 tokens
in the mean over the language model's layers: as many, before it."""


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
    positions: str | None = None
    seeds: tuple[int, ...] = (0,)
    blind: tuple[str, ...] = ()
    split: str = "test"


def weighted(names) -> tuple[fopru.Pruner, ...]:
    kinds = {**fopru.METHODS, **CONTROLS}
    return tuple(kinds[name](weights="mass") for name in names)


FOPRU = fopru.FoPru()
ALONE = tuple(name for name in BEFORE if name != "random")
TUNED = ("fopru", "cls", "divprune", "dpp", "vispruner", "tome", "uniform")
PARTS = {
    # every method and control over the whole range, numbered as each method does by default
    "curves": [
        Part((*ALONE, *INSIDE, *CONTROLS), RANGE, blind=(*BLIND,)),
        Part(("random",), RANGE, seeds=(0, 1, 2)),
    ],
    # the same selections with the position ids of the picture that was pruned
    "preserve": [
        Part((*ALONE, "oracle", "pyramiddrop"), FOUR, "preserve"),
        Part(("random",), FOUR, "preserve", (0, 1, 2)),
        Part(("fastv",), FOUR, "reindex"),
        *(Part((Shuffled(FOPRU),), FOUR, positions) for positions in ("reindex", "preserve")),
    ],
    # kept tokens that count as those they stand for
    "mass": [
        *(Part(weighted((*ALONE, "oracle")), FOUR, p) for p in ("reindex", "preserve")),
        *(Part(weighted(("random",)), FOUR, p) for p in ("reindex", "preserve")),
    ],
    # what the published text leaves open, and rank and row at the same number of tokens
    "readings": [
        Part(
            tuple(
                fopru.FoPru(axis=axis, scores=scores)
                for axis in ("variance", "received", "given")
                for scores in ("probabilities", "logits")
                if (axis, scores) != ("variance", "probabilities")
            ),
            FOUR,
        ),
        *(Part(("fopru", "fopru-row"), ROWS, positions) for positions in ("reindex", "preserve")),
    ],
    # as many tokens as the methods inside the language model keep in the mean over its layers
    "same mean": [Part(("fopru", "divprune", "uniform", "random"), SAME_MEAN)],
    # is it the masses, or any weights?
    "copies": [
        Part(
            {
                "divprune-averaged": fopru.ClusterMean(),
                "divprune-averaged-mass": fopru.ClusterMean(weights="mass"),
                "divprune-constant": Constant(weights="mass"),
                "divprune-dealt": Dealt(weights="mass"),
            },
            FOUR,
        )
    ],
    # another question decides
    "later": [Part(tuple(Later(fopru.METHODS[n]()) for n in (*INSIDE, "cdpruner")), FOUR)],
    # what to recommend is chosen on the validation split
    "validation": [
        Part(methods, (0.25, 0.1), positions, split="validation")
        for positions in ("reindex", "preserve")
        for methods in ((*TUNED, "random"), weighted((*TUNED, "random")))
    ],
}


def ask(model, processor, name: str) -> list[pd.DataFrame]:
    return [
        fopru.evaluate(
            model,
            processor,
            fopru.pocket.benchmark(part.split),
            part.methods,
            part.retentions,
            part.positions,
            part.seeds,
            part.blind,
            out=STORE,
        )
        for part in PARTS[name]
    ]


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

    rows = asked[asked.method == "full"].drop_duplicates("id").copy()
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
    """Without repetition, rounded to a thousandth, which is more than any figure shows."""
    results = results.drop_duplicates(["id", "method", "retention", "positions", "seed"])
    results = results.drop(columns="error")
    floats = ["found", "loglik", "loglik_open", "margin", "kl", "layer_weighted", "score"]
    rounded = {name: results[name].astype("float32").round(3) for name in floats}
    return results.assign(**rounded)


def main(names: list[str]) -> None:
    STORE.parent.mkdir(parents=True, exist_ok=True)
    model, processor = fopru.load("pocket")
    torch.set_grad_enabled(False)
    for name in names:
        ask(model, processor, name)
    if names:
        return
    parts = {name: pd.concat(ask(model, processor, name), ignore_index=True) for name in PARTS}
    test = pd.concat([parts[name] for name in PARTS if name != "validation"], ignore_index=True)
    examples = {e.id: e for e in fopru.pocket.benchmark("test")}
    test = pd.concat([test, guesser(test, examples)], ignore_index=True)
    keep(small(test), RESULTS / "pocketbench.parquet")
    keep(small(parts["validation"]), RESULTS / "validation.parquet")


if __name__ == "__main__":
    main(sys.argv[1:])
