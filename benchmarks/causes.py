"""Why a model does not stop when it is pruned: `data/results/pocket/causes.parquet`.

    export OMP_NUM_THREADS=1
    nohup nice -n 10 python benchmarks/causes.py train output &  # two models, one after the other;
    nohup nice -n 10 python benchmarks/causes.py train own &     # killed and begun again it goes on
    python benchmarks/causes.py ask                              # the table of those that are there

Four trainings of a quarter of the recipe's steps, from one seed, with a decoder of four layers as
the shipped one's: captions among the answers or not, and the tower's dense loss through the
decoder's own output head or through one of its own. `train planted` adds a fifth, the first of the
four with all that the shipped model's labels held: whether the fault comes from answers planted
there, if none of the four has it. Weights stay in `~/.cache/fopru/causes`.
"""

import os
import sys
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import pandas as pd
import torch

import fopru
from fopru.cli.common import keep
from fopru.pocket import scenes

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "data"))
from making.recipe import FIRST, Recipe  # noqa: E402
from making.train import train  # noqa: E402

FOLDER = Path("~/.cache/fopru/causes").expanduser()
BASE = Recipe(stages=FIRST.stages, world="first", layers=4, compiled=True).shortened(4)
CELLS = {
    f"{'captions' if captions else 'answers'}-{dense}": replace(
        BASE, captions=captions, dense=dense
    )
    for dense, captions in product(("output", "own"), (True, False))
}
PLANTED = {"planted": replace(CELLS["captions-output"], slots=FIRST.slots)}
METHODS = ("fopru", "random")
RETENTIONS = (0.25, 0.1)
QUESTIONS, SEED = 100, 20  # a task, on pictures that nothing else shows


def learn(dense: str) -> None:
    """Train the models of one kind of dense loss; captions play no part while the tower learns."""
    cells = {name: recipe for name, recipe in CELLS.items() if recipe.dense == dense} or PLANTED
    first = next(iter(cells.values()))
    learned = FOLDER / f"{dense}-tower" / "log.csv"  # the last file of a training
    if not learned.exists():
        train(
            learned.parent, learned.parent, replace(first, captions=False, stages=first.stages[:1])
        )
    for name, recipe in cells.items():
        folder = FOLDER / name
        if not (folder / "log.csv").exists():
            if not (folder / "checkpoint.pt").exists():
                state = torch.load(learned.with_name("checkpoint.pt"), weights_only=True)
                folder.mkdir(exist_ok=True)
                torch.save({**state, "recipe": asdict(recipe)}, folder / "partial")
                os.replace(folder / "partial", folder / "checkpoint.pt")
            train(folder, folder, recipe, evaluate_every=125)


def ask() -> pd.DataFrame:
    examples = [e for task in scenes.TASKS for e in fopru.pocket.sample(task, QUESTIONS, SEED)]
    parts = []
    trained = {n: r for n, r in (CELLS | PLANTED).items() if (FOLDER / n / "log.csv").exists()}
    for (name, recipe), positions in product(trained.items(), ("reindex", "preserve")):
        model, processor = fopru.load(FOLDER / name)
        store = FOLDER / f"{name}.sqlite"
        rows = fopru.evaluate(
            model, processor, examples, METHODS, RETENTIONS, positions, seeds=range(2), out=store
        )
        parts.append(rows.assign(model=name, captions=recipe.captions, dense=recipe.dense))
    return pd.concat(parts, ignore_index=True)


def report(rows: pd.DataFrame) -> pd.DataFrame:
    """Known, said and malformed in percent, by training, positions, method and retention."""
    by = ["model", "positions", "retention", "method"]
    shares = rows.assign(malformed=1 - rows.formed)
    shares = shares.rename(columns={"choice": "known", "exact": "said"})
    return 100 * shares.groupby(by)[["known", "said", "malformed"]].mean()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["train", "output" | "own" | "planted" as dense]:
            learn(dense)
        case ["ask"]:
            rows = ask()
            keep(rows, ROOT / "data" / "results" / "pocket" / "causes.parquet")
            print(report(rows).round(1).to_string())
        case _:
            sys.exit(__doc__)
