"""PocketBench for lmms-eval: its file, and its metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from fopru.evaluation import metrics
from fopru.evaluation.metrics import METRICS
from fopru.pocket import folder, sampling

FILES = {"test": str(folder("pocketbench") / "test.parquet")}


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Return the accuracy of an answer, and the metric of the task's public cousin."""
    said = results[0].strip().lower()
    metric = sampling.METRICS.get(doc["task"], "accuracy")
    own = {"prediction": said, "answer": doc["answer"]}
    if metric != "f1":
        own = METRICS[metric].each(said, doc["answer"])
    return {"accuracy": METRICS["accuracy"].each(said, doc["answer"]), metric: own}


def f1(answers: Sequence[Mapping[str, str]]) -> float:
    """Return the F1 of "yes" over all questions."""
    return metrics.f1(pd.DataFrame(answers))
