"""The page *The model and its benchmark*."""

import numpy as np
from prose import Rows, bench, gap, table

PAGE = "notebooks/model_and_benchmark.ipynb"


def at(retention: float, name: str, **part) -> Rows:
    """Rows of one retention of a part of a table."""
    return Rows(table(name)).where(**part).at(retention)


def half(model: str, method: str, retention: float = 1.0) -> Rows:
    """Rows of a model that was trained for half as long."""
    return at(retention, "pocket/half", model=model, method=method)


def spread(other: str, retention: float) -> float:
    """Standard deviation over trainings of FoPru minus another method in what is known."""
    pairs = zip(bench("fopru", retention).apart(), bench(other, retention).apart(), strict=True)
    return float(np.std([gap(*pair) for pair in pairs], ddof=1))


def cause(model: str, method: str = "fopru", retention: float = 0.1) -> Rows:
    """Rows of a training of a quarter of the steps, renumbered, one draw."""
    part = {"model": model, "method": method, "positions": "reindex", "seed": 0}
    return at(retention, "pocket/causes", **part)


def combined() -> list[float]:
    """Known with all tokens: on new combinations, and on familiar ones of the same tasks."""
    new = Rows(table("beyond")).where(split="combinations", method="full", positions="reindex")
    return [new.share(), bench("full", task=list(new.rows["task"].unique())).share()]


CLAIMS = [
    (
        "the smallest of the four ({} %) or the largest ({} %)",
        lambda: [cause(m).share("malformed") for m in ("answers-output", "answers-own")],
    ),
    (
        "{} % of FoPru's answers are malformed with them and {} % without",
        lambda: [cause(m).share("malformed") for m in ("planted", "captions-output")],
    ),
    (
        "That tower did not get far: {} % exact match",
        lambda: half("captions", "full").share("exact"),
    ),
    (
        "a standard deviation of at most {} points",
        lambda: max(spread(m, r) for m in ("cls", "divprune", "random") for r in (0.25, 0.1)),
    ),
    (
        "knows {} % of the answers on new combinations, and {} % on familiar ones",
        combined,
    ),
    (
        "the guesser gets {} % of counting, and {} % of knowledge",
        lambda: [bench("guess", task=t).share() for t in ("counting", "knowledge")],
    ),
]
ASIDE = [
    "know about 60 % with all tokens",
    "Where nearly all methods know 95 % and more",
]
