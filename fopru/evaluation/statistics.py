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

    Returns:
        The keys, n (questions), kept (mean of the tokens really kept), mean, low, high.
    """
    keys = [*by, "method", "retention"]
    rows = []
    for key, cell in results.groupby(keys, sort=False, observed=True):
        questions = cell.groupby(["image", "id"])[value].mean().dropna()
        if questions.empty:
            continue
        mean, low, high = interval(questions, questions.index.get_level_values("image").to_series())
        named = dict(zip(keys, key, strict=True))
        kept = cell["kept"].mean() if "kept" in cell else np.nan
        numbers = {"n": len(questions), "kept": kept, "mean": mean, "low": low, "high": high}
        rows.append(named | numbers)
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


def above_chance(share: float, chance: float) -> float:
    """A share of right answers on a scale where guessing is 0 and always right is 1."""
    return (share - chance) / (1 - chance)


def f1(results: pd.DataFrame, positive: str = "yes") -> float:
    """F1 of the answer `positive` (POPE's metric), over all rows given."""
    said, right = results["prediction"] == positive, results["answer"] == positive
    both = 2 * (said & right).sum() + (said & ~right).sum() + (~said & right).sum()
    return float(2 * (said & right).sum() / both) if both else np.nan


def flips(results: pd.DataFrame) -> pd.DataFrame:
    """How far each setting follows the full model, as shares of the questions.

    Returns:
        Per task, method and retention: agrees (same answer), lost (right became wrong), gained
        (wrong became right), and nats (mean fall of the right answer's log-likelihood).
    """
    full = results[results.method == "full"].drop_duplicates("id").set_index("id")
    others = results[~results.method.isin(["full"])]
    before = full.loc[others["id"]]
    right, was_right = others["correct"].to_numpy(bool), before["correct"].to_numpy(bool)
    table = others[["task", "method", "retention"]].assign(
        agrees=others["prediction"].to_numpy() == before["prediction"].to_numpy(),
        lost=was_right & ~right,
        gained=~was_right & right,
        nats=before["loglik"].to_numpy() - others["loglik"].to_numpy(),
    )
    return table.groupby(["task", "method", "retention"], sort=False).mean().reset_index()


def area(results: pd.DataFrame, value: str = "correct") -> pd.DataFrame:
    """Area under accuracy over log tokens kept, divided by the width: a mean over the budgets.

    Returns:
        Per task and method, over the budgets from its smallest to all tokens: area.
    """
    cells = accuracy(results, value=value)
    full = cells[cells.method == "full"].set_index("task")
    rows = []
    for (task, method), part in cells[cells.retention < 1].groupby(["task", "method"], sort=False):
        part = part.sort_values("kept")
        x = np.log([*part["kept"], full.loc[task, "kept"]])
        y = [*part["mean"], full.loc[task, "mean"]]
        rows.append({"task": task, "method": method, "area": np.trapezoid(y, x) / np.ptp(x)})
    return pd.DataFrame(rows)
