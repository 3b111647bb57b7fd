"""Means and differences with intervals that respect pictures shared by several questions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

RESAMPLES = 2000


def interval(
    values: pd.Series, images: pd.Series, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of one value per question, with a bootstrap interval over pictures.

    Args:
        values: one number per question; its mean is what is estimated.
        images: the picture of each; questions on one picture are drawn together.
        confidence: of the percentile interval.
        seed: of the resampling.

    Returns:
        (mean, low, high); the interval is NaN where there is only one picture.
    """
    frame = pd.DataFrame({"value": np.asarray(values, float), "image": np.asarray(images)})
    sums = frame.groupby("image")["value"].agg(["sum", "size"]).to_numpy(float)  # (pictures, 2)
    mean = sums[:, 0].sum() / sums[:, 1].sum()
    if len(sums) < 2:
        return mean, np.nan, np.nan
    result = bootstrap(
        (sums[:, 0], sums[:, 1]),
        lambda total, count, axis: total.sum(axis) / count.sum(axis),
        n_resamples=RESAMPLES,
        paired=True,
        vectorized=True,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return mean, *map(float, result.confidence_interval)


def per_question(results: pd.DataFrame, value: str = "correct") -> pd.DataFrame:
    """One row per question, one column per (method, retention): the mean over seeds.

    Args:
        results: as `fopru.evaluate` gives them.
        value: the column to average.
    """
    keys = ["task", "image", "id"]
    table = results.assign(**{value: results[value].astype(float)}).pivot_table(
        index=keys, columns=["method", "retention"], values=value, aggfunc="mean"
    )
    return table


def accuracy(
    results: pd.DataFrame, by: Sequence[str] = ("task",), value: str = "correct"
) -> pd.DataFrame:
    """Mean of a column per method, retention and `by`, with 95 % intervals over pictures.

    Seeds of a method are averaged per question first, so that they do not count as more questions.
    """
    keys = [*by, "method", "retention"]
    rows = []
    for key, cell in results.groupby(keys, sort=False, observed=True):
        questions = cell.groupby(["image", "id"])[value].mean().dropna()
        if questions.empty:
            continue
        mean, low, high = interval(questions, questions.index.get_level_values("image").to_series())
        named = dict(zip(keys, key, strict=True))
        rows.append({**named, "n": len(questions), "mean": mean, "low": low, "high": high})
    return pd.DataFrame(rows)


def difference(
    results: pd.DataFrame, one: tuple[str, float], other: tuple[str, float], value: str = "correct"
) -> tuple[float, float, float]:
    """Mean of one (method, retention) minus another, paired by question, 95 % over pictures.

    Raises:
        ValueError: a setting that the results do not hold.
    """
    table = per_question(results, value)
    for setting in (one, other):
        if setting not in table.columns:
            there = ", ".join(map(str, table.columns))
            raise ValueError(f"setting {setting} is not among the results: {there}.")
    gap = (table[one] - table[other]).dropna()
    return interval(gap, gap.index.get_level_values("image").to_series())
