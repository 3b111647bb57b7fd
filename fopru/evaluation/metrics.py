"""How right an answer is, by itself and over all questions: the benchmarks' own metrics."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd


class Metric(NamedTuple):
    """A pair of functions. `METRICS["mine"] = Metric(each, over)` makes examples with
    `metric="mine"` be judged by it."""

    each: Callable[[str, str], float]
    """A function of what was said and one right answer, both stripped and in lower case. It says
    how right the one is by the other, in [0, 1]."""
    over: Callable[[pd.DataFrame], float]
    """A function of rows of `fopru.evaluate`, of one method, retention and seed. It gives the
    metric over all of them."""


def exact(said: str, right: str) -> float:
    """Return 1 where both texts are the same, else 0."""
    return float(said == right)


def anls(said: str, right: str) -> float:
    """Return 1 - edit distance / longer length, or 0 where that is below 0.5. It is DocVQA's metric
    (Biten et al., "Scene Text Visual Question Answering", ICCV 2019)."""
    longest = max(len(said), len(right), 1)
    likeness = 1 - _edits(said, right) / longest
    return likeness if likeness >= 0.5 else 0.0


def relaxed(said: str, right: str) -> float:
    """Return 1 for the same text, or for a number within 5 % of the right one, else 0; "45%" is
    0.45. It is ChartQA's metric (Masry et al., "ChartQA", Findings of ACL 2022)."""
    number, goal = _number(said), _number(right)
    if said == right or number is None or goal is None:
        return exact(said, right)
    return float(abs(number - goal) <= 0.05 * abs(goal))


def _number(text: str) -> float | None:
    """Return the finite number that a text stands for, or None: "nan" and "inf" are words."""
    percent = text.endswith("%")
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        return None
    return (value / 100 if percent else value) if math.isfinite(value) else None


def _edits(a: str, b: str) -> int:
    """Return the Levenshtein distance of two texts."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]


def mean(results: pd.DataFrame) -> float:
    """Return the mean of the column `score` over all rows."""
    return float(results["score"].mean())


def f1(results: pd.DataFrame, positive: str = "yes") -> float:
    """Return the F1 of the answer `positive` over all rows, or NaN where it is neither right nor
    said anywhere. It is POPE's metric (Li et al., "Evaluating Object Hallucination in Large
    Vision-Language Models", EMNLP 2023)."""
    said, right = results["prediction"] == positive, results["answer"] == positive
    both = 2 * (said & right).sum() + (said & ~right).sum() + (~said & right).sum()
    return float(2 * (said & right).sum() / both) if both else np.nan


METRICS = {
    "accuracy": Metric(exact, mean),
    "f1": Metric(exact, f1),
    "anls": Metric(anls, mean),
    "relaxed": Metric(relaxed, mean),
}
"""Every metric by its name, as `Example.metric` and the field "metric" of `read_rows` give it."""
