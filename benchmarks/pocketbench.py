"""Every method and control at every retention on PocketBench: `data/results/pocketbench.parquet`.

    python benchmarks/pocketbench.py    # about half an hour on two cores; a stopped run goes on

All positions are the family's default, and for a few methods the original ones too.
"""

import sys
from pathlib import Path

import pandas as pd

import fopru
from fopru.cli.common import keep
from fopru.evaluation.controls import BLIND, CONTROLS, Later, Shuffled

RETENTIONS = (1.0, 0.75, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05, 0.02, 1 / 256)
SHUFFLED = Shuffled(fopru.FoPru())
LATER = [Later(fopru.METHODS[name]()) for name in ("fastv", "pyramiddrop", "cdpruner")]
PRESERVED = ("fopru", "fopru-row", "cls", "oracle", SHUFFLED)
FLOATS = ("found", "loglik", "kl", "layer_weighted", "score")


def main(out: Path) -> None:
    model, processor = fopru.load("pocket")
    examples = fopru.pocket.benchmark("test")
    store = out.with_suffix(".sqlite")
    others = [name for name in (*fopru.METHODS, *CONTROLS) if name != "random"] + [SHUFFLED, *LATER]
    calls = (
        {"methods": others, "seeds": [0], "blind": [*BLIND]},
        {"methods": ["random"], "seeds": range(5)},
        {"methods": PRESERVED, "seeds": [0], "positions": "preserve"},
        {"methods": ["random"], "seeds": range(5), "positions": "preserve"},
    )
    parts = [
        fopru.evaluate(model, processor, examples, retentions=RETENTIONS, out=store, **arguments)
        for arguments in calls
    ]
    results = pd.concat(parts, ignore_index=True).drop_duplicates(
        ["id", "method", "retention", "positions", "seed"]
    )
    small = results.astype(dict.fromkeys(FLOATS, "float32")).drop(columns="error")
    keep(small, out)


if __name__ == "__main__":
    folder = Path(__file__).parents[1] / "data" / "results"
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else folder / "pocketbench.parquet")
