"""The newer methods, `weights="restore"`, and methods put together, asked of the shipped model on
PocketBench's test questions: `data/results/newer.parquet`.

    python benchmarks/newer.py               # about half an hour on one core
    python benchmarks/newer.py newer restore # these parts only

Questions and columns are those of `pocketbench.parquet`, so that rows of both files can be paired.
Answers go to a database in `~/.cache/fopru`, so that a stopped run goes on; a call without parts
writes the table.
"""

import sys
from pathlib import Path

import pandas as pd
import torch
from pocketbench import RESULTS, small

import fopru
from fopru.cli.common import keep

STORE = Path("~/.cache/fopru/newer.sqlite").expanduser()
NEWER = ("hiprune", "scope", "holov", "vscan", "mmtok", "prunesid")
SPREAD = ("divprune", "dpp", "vispruner", "fopru", "tome", "cluster-mean")
RECEIVED = fopru.FoPru(axis="received")
PICKS = {
    "cells": fopru.Cells(),
    "mmr": fopru.MMR(),
    "halves": fopru.Halves(),
}


def weighted(names, weights):
    return tuple(fopru.METHODS[name](weights=weights) for name in names)


PARTS = {
    # methods, retentions, position ids
    "newer": [
        ((*NEWER, "cluster-mean"), (0.5, 0.25, 0.1), None),
        (("sparsevlm",), (0.5, 0.25, 0.1), "reindex"),
        (("sparsevlm",), (0.5, 0.25, 0.1), "preserve"),
    ],
    "restore": [
        (weighted(SPREAD, "restore"), (0.25, 0.1, 0.05), "preserve"),
        (weighted(SPREAD, "restore"), (0.25, 0.1), "reindex"),
        (weighted(("cluster-mean",), "mass"), (0.25, 0.1, 0.05), "preserve"),
        (weighted(("cluster-mean",), "mass"), (0.25, 0.1), "reindex"),
    ],
    "composed": [
        (
            {name: fopru.Compose(scorer=RECEIVED, pick=pick) for name, pick in PICKS.items()},
            (0.25, 0.1),
            None,
        )
    ],
}


def ask(model, processor, name: str) -> pd.DataFrame:
    questions = fopru.pocket.benchmark("test")
    tables = [fopru.evaluate(model, processor, questions, *part, out=STORE) for part in PARTS[name]]
    return pd.concat(tables, ignore_index=True)


def main(names: list[str]) -> None:
    model, processor = fopru.load("pocket")
    torch.set_grad_enabled(False)
    parts = [ask(model, processor, name) for name in names or PARTS]
    if not names:
        keep(small(pd.concat(parts, ignore_index=True)), RESULTS / "newer.parquet")


if __name__ == "__main__":
    main(sys.argv[1:])
