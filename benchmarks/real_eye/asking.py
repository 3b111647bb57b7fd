"""What pruning costs the LLaVA on the real tower: the same table as PocketBench's."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pandas as pd
from transformers import LlavaForConditionalGeneration, LlavaProcessor

import fopru
from fopru.evaluation.controls import BLIND, CONTROLS
from fopru.evaluation.statistics import interval
from fopru.in_llm import InLLMPruner
from fopru.pruner import POSITIONS, WEIGHTS
from real_eye import world

SCENES = {"known": range(900_000, 900_120), "unseen": range(910_000, 910_060)}
"""The seeds of the scenes that are asked about. No training draws these: its own run from 0."""
RETENTIONS = (0.5, 0.25, 0.1, 0.05)
WEIGHTED = (0.25, 0.1)
"""The retentions at which tokens are weighted too, in questions about known things."""
METHODS = tuple(
    name for name, kind in fopru.METHODS.items() if "view" in kind.shares and kind.budgeted
)
BATCH = 256
"""Questions at a time: the model is so small that calling it is what costs."""
GOALS = {"known": 0.85, "unseen": 0.65}
"""What all tokens should reach, exact: less, and a comparison of methods says little."""


def ask(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    store: Path,
    scenes: dict[str, Sequence[int]] = SCENES,
    methods: Sequence[str] = METHODS,
    retentions: Sequence[float] = RETENTIONS,
) -> pd.DataFrame:
    """The rows of `fopru.evaluate` for each part, with its name, and with the weights of each
    setting: methods and controls, with both kinds of position ids, and with weights. Readings are
    rounded to a thousandth, which is more than any figure shows."""
    kinds = {name: fopru.METHODS[name] for name in methods} | CONTROLS
    weighable = [n for n, k in kinds.items() if not issubclass(k, InLLMPruner) and n != "smaller"]
    parts = []
    for part, seeds in scenes.items():
        examples, plain = world.examples(part, seeds), True
        for positions, weights in product(POSITIONS, WEIGHTS if part == "known" else ("none",)):
            names = kinds if weights == "none" else weighable
            rows = fopru.evaluate(
                model,
                processor,
                examples,
                {name: kinds[name](weights=weights) for name in names},
                [r for r in retentions if weights == "none" or r in WEIGHTED],
                positions,
                seeds=(0, 1),
                blind=tuple(BLIND) if plain else (),
                out=store,
                batch_size=BATCH,
            )
            if not plain:
                rows = rows[rows["method"] != "full"]  # the same every time
            parts.append(rows.assign(part=part, weights=weights))
            plain = False
    found = pd.concat(parts, ignore_index=True)
    floats = found.select_dtypes("float").drop(columns="retention")
    return found.assign(**floats.astype("float32").round(3))


def report(rows: pd.DataFrame) -> str:
    """All tokens against the goals; then what each method says right, on "yes" and "no" apart."""
    lines = []
    for part, goal in GOALS.items():
        full = rows[(rows["part"] == part) & (rows["method"] == "full")]
        if full.empty:
            continue
        mean, low, high = interval(full["exact"], full["image"])
        verdict = "reached" if mean >= goal else "missed"
        lines.append(
            f"all tokens, {part} things in new scenes: {100 * mean:.1f} "
            f"[{100 * low:.1f}, {100 * high:.1f}], goal {100 * goal:.0f} {verdict}"
        )
        lines.append(full.groupby("task")["exact"].mean().mul(100).round(1).to_string())
    for reading in ("exact", "choice"):
        keys = ["part", "positions", "weights", "retention", "method"]
        table = 100 * rows.groupby([*keys, "task"])[reading].mean().unstack()
        polar = rows[rows["task"] == "presence"]
        polar = 100 * polar.groupby([*keys, "variant"])[reading].mean().unstack()
        lines.append(f"{reading}, percent\n{table.join(polar).round(1).to_string()}")
    return "\n\n".join(lines)
