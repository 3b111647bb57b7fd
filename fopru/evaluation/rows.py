"""Which rows of the table of `fopru.evaluate` are counted."""

from __future__ import annotations

import pandas as pd


def answered(results: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of questions that could be asked, of one way of asking for each method.

    Every function of `fopru.evaluation.statistics` that takes the table of `fopru.evaluate` uses
    these rows only.

    Raises:
        ValueError: No question was answered, or a method has rows with two kinds of position ids or
            of attention, or at one retention with and without a number of tokens: they would be
            averaged as if they were seeds.
    """
    if "error" in results:
        results = results[results["error"].isna()]
    if results.empty:
        raise ValueError("results: no question was answered.")
    kinds = {"positions": ["method"], "attention": ["method"], "budget": ["method", "retention"]}
    for column, cell in kinds.items():
        if column not in results:
            continue
        for (method, *_), values in results.groupby(cell, sort=False, dropna=False)[column]:
            found = values.unique().tolist()
            if len(found) > 1:
                raise ValueError(
                    f"results: method {method!r} has rows with {column} "
                    f"{' and '.join(map(repr, found))}: take those of one."
                )
    return results


def trainings_of(results: pd.DataFrame) -> list[pd.DataFrame]:
    """Return the rows of each training; a table without the column is of one."""
    if "training" not in results:
        return [results]
    return [part for _, part in results.groupby("training", sort=False, dropna=False)]


def needing(
    results: pd.DataFrame, downsampled: str = "smaller", value: str = "choice"
) -> pd.DataFrame:
    """Return the rows of questions that a smaller picture does not answer and the full one does.

    A question that a smaller picture answers says nothing about how tokens are chosen. Leaving such
    questions out is the filter of VTC-Bench (arXiv 2510.07143). It is applied anew at each
    retention, and to each training.

    Args:
        results: The table of `fopru.evaluate`, with the control `downsampled` among the methods.
        downsampled: The method whose right answers take a question out.
        value: The reading that decides what is answered.

    Returns:
        The rows of all methods at the retentions that `downsampled` was asked at; those of "full"
        are repeated for each of them.

    Raises:
        ValueError: `downsampled` or "full" is not among the methods.
    """
    results = answered(results)
    for name in (downsampled, "full"):
        if not results["method"].eq(name).any():
            raise ValueError(f"results: have no method {name!r}, which says what is easy.")
    parts = []
    for asked in trainings_of(results):
        whole = asked[asked["method"] == "full"]
        seen = set(whole.loc[whole[value] > 0.5, "id"])
        for retention, small in asked[asked["method"] == downsampled].groupby("retention"):
            right = small.groupby("id")[value].mean()
            wanted = seen & set(right.index[right <= 0.5])
            here = asked[(asked["retention"] == retention) & (asked["method"] != "full")]
            here = pd.concat([here, whole.assign(retention=retention)])
            parts.append(here[here["id"].isin(wanted)])
    return pd.concat(parts, ignore_index=True)
