"""What several trainings of one model say together: means, their spread, and what may be ranked."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from fopru.evaluation.statistics import difference, means

LEAST = 3
"""The number of trainings from which on a ranking may be printed."""


def over_trainings(
    results: pd.DataFrame, by: Sequence[str] = ("task",), value: str = "exact"
) -> pd.DataFrame:
    """Return the mean of a column over trainings of one model, with the spread between them.

    The interval of `fopru.evaluation.statistics.accuracy` says how far other pictures would move a
    number of one training. This one says how far another training would move it, which is often
    several times as far.

    Args:
        results: The tables of `fopru.evaluate`, one below the other, with the column "training".
        by: Columns that cells are told apart by, beside method and retention.
        value: The column to average, or "malformed".

    Returns:
        The keys, trainings (their number), kept, mean, spread (standard deviation over trainings,
        in the units of the column), low and high: the means of the lowest and of the highest
        training. All three are NaN where there is one training.

    Raises:
        ValueError: there is no column "training", or it is empty in some rows.
    """
    _check(results)
    keys = [*by, "method", "retention"]
    each = pd.concat([means(part, by, value) for _, part in results.groupby("training")])
    cells = each.groupby(keys, sort=False, observed=True)
    table = cells.agg(
        trainings=("mean", "size"),
        **({"kept": ("kept", "mean")} if "kept" in each else {}),
        average=("mean", "mean"),
        spread=("mean", "std"),
        low=("mean", "min"),
        high=("mean", "max"),
    )
    ends = ["low", "high"]
    table[ends] = table[ends].where(table["trainings"] > 1)
    return table.reset_index().rename(columns={"average": "mean"})


def compared(
    results: pd.DataFrame,
    one: tuple[str, float],
    other: tuple[str, float],
    value: str = "choice",
) -> pd.DataFrame:
    """Return how far one (method, retention) is ahead of another in each training.

    Args:
        results: As `over_trainings` takes them.
        one: The setting that may be ahead.
        other: The setting that it is compared with, at the same cost.
        value: The column that is compared; "choice" is what the model knows.

    Returns:
        Per training: difference, low and high, the 95 % interval over pictures.

    Raises:
        ValueError: there is no column "training", it is empty in some rows, or a training lacks one
            of the settings.
    """
    _check(results)
    rows = []
    for training, part in results.groupby("training"):
        gap, low, high = difference(part, one, other, value)
        rows.append({"training": training, "difference": gap, "low": low, "high": high})
    return pd.DataFrame(rows).set_index("training")


def envelope(comparison: pd.DataFrame) -> tuple[float, float, float]:
    """Return the mean difference over trainings, and the lowest and the highest end of their
    intervals.

    The two ends are on one side of 0 exactly where all trainings agree on who is ahead, each by
    more than other pictures would explain.

    Args:
        comparison: What `compared` returned.

    Returns:
        (mean, low, high), in the units of the column that was compared; an end is NaN where a
        training has no interval.
    """
    low, high = comparison["low"].min(skipna=False), comparison["high"].max(skipna=False)
    return float(comparison["difference"].mean()), float(low), float(high)


def ranks(comparison: pd.DataFrame) -> bool:
    """Return whether the first of two settings may be called better than the other on this model.

    It may if it is ahead in each of at least `LEAST` trainings, by more than other pictures would
    explain. Anything else is a number of one training.

    Args:
        comparison: What `compared` returned.
    """
    return len(comparison) >= LEAST and bool((comparison["low"] > 0).all())


def _check(results: pd.DataFrame) -> None:
    if "training" not in results:
        raise ValueError(
            'results: have no column "training", which says what weights gave each answer; add it '
            "to each table before they are joined: table.assign(training=...)."
        )
    if lost := int(results["training"].isna().sum()):
        raise ValueError(
            f"results: {lost} of {len(results)} rows name no training, and would be left out: give "
            'each a value in the column "training", or leave them out yourself.'
        )
