"""Means and differences with intervals that respect pictures shared by several questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy.stats import binomtest, bootstrap

from fopru.evaluation.metrics import METRICS
from fopru.evaluation.rows import answered, trainings_of

RESAMPLES = 2000
"""How often a bootstrap draws the pictures anew."""


def interval(
    values: pd.Series, images: pd.Series, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """Return the mean of one value per question, with a bootstrap interval over pictures.

    Args:
        values: One number per question, whose mean is estimated.
        images: The picture of each question; questions on one picture are drawn together.
        confidence: The confidence of the percentile interval.
        seed: The seed of the resampling.

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


def per_question(results: pd.DataFrame, value: str = "exact") -> pd.DataFrame:
    """Return one row per question and one column per (method, retention): the mean over seeds.

    Args:
        results: The table of `fopru.evaluate`.
        value: The column to average.
    """
    results = answered(results)
    each = _per_cell(results, ["task", "method", "retention"], value)
    index, columns = ["task", "image", "id"], ["method", "retention"]
    return each.pivot(index=index, columns=columns, values="value").sort_index(axis=1)


def means(
    results: pd.DataFrame, by: Sequence[str] = ("task",), value: str = "exact"
) -> pd.DataFrame:
    """Return the mean of a column per method, retention and `by`.

    Seeds and trainings are averaged per question first, so that they are not more questions.

    Returns:
        The keys, n (questions), kept (mean of the tokens really kept), mean.
    """
    results = answered(results)
    keys = [*by, "method", "retention"]
    return _means(results, _per_cell(results, keys, value), keys)


def _means(results: pd.DataFrame, each: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Return the table of `means` from that of `_per_cell`."""
    cells = each.groupby(keys, sort=False, observed=True, dropna=False)
    table = cells["value"].agg(n="size", mean="mean")
    if "kept" in results:
        kept = results.groupby(keys, sort=False, observed=True, dropna=False)["kept"].mean()
        table.insert(1, "kept", kept.reindex(table.index))
    return table.reset_index()


def _per_cell(results: pd.DataFrame, keys: Sequence[str], value: str) -> pd.DataFrame:
    """Return one row per question and cell: the keys, image, id and value, the mean over seeds."""
    column = 1 - results["formed"].astype(float) if value == "malformed" else results[value]
    values = results.assign(value=column.astype(float)).dropna(subset=["value"])
    groups = values.groupby([*keys, "image", "id"], sort=False, observed=True, dropna=False)
    return groups["value"].mean().reset_index()


def accuracy(
    results: pd.DataFrame, by: Sequence[str] = ("task",), value: str = "exact"
) -> pd.DataFrame:
    """Return the table of `means` with 95 % intervals over pictures in the columns low and high.

    Where all answers are right, or all wrong, a bootstrap has no width: there the interval is that
    of Clopper and Pearson, with each picture as one trial.
    """
    results = answered(results)
    keys = [*by, "method", "retention"]
    each = _per_cell(results, keys, value)
    cells = each.groupby(keys, sort=False, observed=True, dropna=False)
    ends = np.array([_share(cell["value"], cell["image"]) for _, cell in cells])
    return _means(results, each, keys).assign(low=ends[:, 0], high=ends[:, 1])


READINGS = {"known": "choice", "said": "exact", "malformed": "malformed"}
"""Each reading of an answer -> the column that holds it. They are known by forced choice, said by
exact match, and the share that is no legal answer. Every function here counts the last from
`formed`."""


def readings(
    results: pd.DataFrame,
    by: Sequence[str] = (),
    table: Callable[[pd.DataFrame, Sequence[str], str], pd.DataFrame] = accuracy,
) -> pd.DataFrame:
    """Return what the model knows and what it says, side by side.

    Questions that name no legal answers count in "said" only.

    Args:
        results: The table of `fopru.evaluate`.
        by: Columns that cells are told apart by, beside method and retention.
        table: What is counted of each reading: `accuracy`, `means`, `bands`, or
            `fopru.evaluation.trainings.over_trainings`.

    Returns:
        The rows that `table` gives for each of `READINGS`, with the column "reading".

    Raises:
        ValueError: Not one question names its legal answers.
    """
    if results["choice"].isna().all():
        raise ValueError("results: no question names its legal answers: only `exact` can be read.")
    parts = [table(results, by, column).assign(reading=name) for name, column in READINGS.items()]
    return pd.concat(parts, ignore_index=True)


def _share(values: pd.Series, images: pd.Series) -> tuple[float, float]:
    """Return the interval of a share."""
    pictures = images.nunique()
    if pictures > 1 and (values.eq(1).all() or values.eq(0).all()):
        exact = binomtest(pictures if values.iloc[0] else 0, pictures).proportion_ci()
        return exact.low, exact.high
    return interval(values, images)[1:]


def difference(
    results: pd.DataFrame, one: tuple[str, float], other: tuple[str, float], value: str = "exact"
) -> tuple[float, float, float]:
    """Return the mean of one (method, retention) minus another, paired by question, with a 95 %
    interval over pictures.

    Raises:
        ValueError: a setting that the results do not hold.
    """
    table = per_question(results, value)
    for setting in (one, other):
        if setting not in table.columns:
            of_it = [share for method, share in table.columns if method == setting[0]]
            there = f"this method at {of_it}" if of_it else sorted({m for m, _ in table.columns})
            raise ValueError(f"setting {setting} is not among the results, which hold {there}.")
    gap = (table[one] - table[other]).dropna()
    return interval(gap, gap.index.get_level_values("image").to_series())


def bands(
    results: pd.DataFrame,
    by: Sequence[str] = ("task",),
    value: str = "exact",
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the table of `means` with intervals that hold for all cells at once, in the columns
    low and high.

    Pictures are drawn once for all cells, and every band is as many standard errors wide as the
    worst of the cells needs (the maximum of the studentised deviations).
    """
    results = answered(results)
    keys = [*by, "method", "retention"]
    each = _per_cell(results, keys, value)
    cells = _means(results, each, keys)
    groups = each.groupby([*keys, "image"], observed=True)["value"]
    per_picture = groups.agg(["sum", "size"]).unstack("image").fillna(0)
    per_picture = per_picture.loc[list(cells[keys].itertuples(index=False, name=None))]
    sums, counts = (per_picture[name].to_numpy(float) for name in ("sum", "size"))
    pictures = sums.shape[1]
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(pictures, np.full(pictures, 1 / pictures), RESAMPLES)  # (R, pictures)
    with np.errstate(invalid="ignore"):  # no picture of a small cell was drawn
        drawn = (weights @ sums.T) / (weights @ counts.T)  # (R, cells)
    errors = np.nanstd(drawn, axis=0)
    far = np.abs(drawn - cells["mean"].to_numpy()) / np.where(errors > 0, errors, np.inf)
    width = np.quantile(np.nanmax(far, axis=1), confidence) * errors
    return cells.assign(low=cells["mean"] - width, high=cells["mean"] + width)


def retained(results: pd.DataFrame, blind: str = "grey", value: str = "exact") -> pd.DataFrame:
    """Return the share of the picture's worth that each setting keeps: 1 is the accuracy with all
    tokens, 0 that of a blind model.

    Args:
        results: The table of `fopru.evaluate`, the control `blind` among them.
        blind: The control whose accuracy is the floor, since guessing is easier in some tasks than
            in others.
        value: The column of the reading.

    Returns:
        Per task, method and retention: kept, accuracy, retained (NaN where seeing gains nothing).
    """
    cells = means(results, value=value)
    floor, full = (cells[cells.method == m].set_index("task")["mean"] for m in (blind, "full"))
    low, high = cells["task"].map(floor), cells["task"].map(full)
    table = cells[["task", "method", "retention", "kept"]].assign(accuracy=cells["mean"])
    return table.assign(retained=(cells["mean"] - low) / (high - low).where(high > low))


def scores(results: pd.DataFrame) -> pd.DataFrame:
    """Return the benchmarks' own metrics, the mean over seeds and trainings.

    Returns:
        Per task, method and retention: metric (a name of `fopru.evaluation.metrics.METRICS`) and
        score.
    """
    rows = []
    keys = ["task", "method", "retention", "metric"]
    for key, cell in answered(results).groupby(keys, sort=False, dropna=False):
        runs = (part for each in trainings_of(cell) for _, part in each.groupby("seed"))
        score = np.mean([METRICS[key[-1]].over(run) for run in runs])
        rows.append(dict(zip(keys, key, strict=True)) | {"score": score})
    return pd.DataFrame(rows)


def flips(results: pd.DataFrame) -> pd.DataFrame:
    """Return how far each setting follows the full model of its training, as shares of the
    questions.

    Returns:
        Per task, method and retention: agrees (same answer), lost (right became wrong), gained
        (wrong became right), and nats (mean fall of the right answer's log-likelihood).
    """
    parts = []
    for part in trainings_of(answered(results)):
        full = part[part.method == "full"].drop_duplicates("id").set_index("id")
        others = part[part.method != "full"]
        before = full.loc[others["id"]]
        right, was_right = others["exact"].to_numpy(bool), before["exact"].to_numpy(bool)
        table = others[["task", "method", "retention"]].assign(
            agrees=others["prediction"].to_numpy() == before["prediction"].to_numpy(),
            lost=was_right & ~right,
            gained=~was_right & right,
            nats=before["loglik"].to_numpy() - others["loglik"].to_numpy(),
        )
        parts.append(table)
    cells = pd.concat(parts).groupby(["task", "method", "retention"], sort=False)
    return cells.mean().reset_index()


def area(results: pd.DataFrame, value: str = "exact") -> pd.DataFrame:
    """Return the area under accuracy over the logarithm of tokens kept, divided by the width: a
    mean accuracy over budgets.

    The area begins at the smallest budget that all methods of the task reach, and ends at all
    tokens. Between the budgets that were measured a method's curve is straight. Methods of a single
    budget have no area.

    Returns:
        Per task and method: area, start (tokens).
    """
    cells = means(results, value=value)
    rows = []
    for task, part in cells.groupby("task", sort=False):
        (full,) = part[part.method == "full"].itertuples()
        curves = {
            method: curve.sort_values("kept")
            for method, curve in part[part.kept < full.kept].groupby("method", sort=False)
            if curve["kept"].nunique() > 1
        }
        start = max(curve["kept"].iloc[0] for curve in curves.values())
        for method, curve in curves.items():
            kept, mean = np.log([*curve["kept"], full.kept]), [*curve["mean"], full.mean]
            x = np.unique([np.log(start), *kept[kept >= np.log(start)]])
            share = np.trapezoid(np.interp(x, kept, mean), x) / np.ptp(x)
            rows.append({"task": task, "method": method, "area": share, "start": start})
    return pd.DataFrame(rows)
