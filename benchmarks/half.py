"""What survives another training seed: `data/results/pocket/half.parquet`.

    python data/making train seed1 --half --seed 1             # and 2, 3: an hour each on two cores
    python data/making train captions --half --captions-only
    python benchmarks/half.py seed1 seed2 seed3 captions   # ten minutes each; a stopped run goes on

Every method once on PocketBench's test split, on models that were trained for half as long: three
from other seeds, one whose tower saw captions only. The weights are not kept. (The committed file
was made by the recipe of the first weights, `FIRST` in `data/making/recipe.py`, and before
answers were kept: it has exact match and evidence only.)
"""

import sys
from pathlib import Path

import pandas as pd

import fopru
from fopru.cli.common import keep
from fopru.evaluation.controls import BLIND, CONTROLS
from fopru.in_llm import InLLMPruner

RETENTIONS = (0.5, 0.25, 0.1)
UNKEPT = ["metric", "score", "kl", "error"]


def answers(folder: Path, methods: list[fopru.Pruner]) -> pd.DataFrame:
    model, processor = fopru.load(folder)
    examples = fopru.pocket.benchmark("test")
    return fopru.evaluate(
        model,
        processor,
        examples,
        methods,
        RETENTIONS,
        seeds=range(2),
        blind=[*BLIND],
        out=folder.with_suffix(".sqlite"),
    )


def main(folders: list[Path], out: Path) -> None:
    kinds = {**fopru.METHODS, **CONTROLS}.values()
    methods = [kind() for kind in kinds]
    methods += [kind(weights="mass") for kind in kinds if not issubclass(kind, InLLMPruner)]
    parts = [answers(folder, methods).assign(model=folder.name) for folder in folders]
    results = pd.concat(parts, ignore_index=True)
    keep(results.drop(columns=UNKEPT), out)


if __name__ == "__main__":
    results = Path(__file__).parents[1] / "data" / "results"
    main([Path(arg) for arg in sys.argv[1:]], results / "pocket" / "half.parquet")
