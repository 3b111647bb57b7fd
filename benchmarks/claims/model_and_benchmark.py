"""The page *The model and its benchmark*."""

import numpy as np
from prose import Rows, bench, gap, table

PAGE = "notebooks/model_and_benchmark.ipynb"


def half(model: str, method: str, retention: float = 1.0) -> Rows:
    """Rows of a model that was trained for half as long."""
    rows = Rows(table("pocket/half")).where(model=model, method=method)
    return Rows(rows.rows[np.isclose(rows.rows["retention"], retention)])


BLIND = ("guess", "swapped", "grey", "none")
SEEDS = ("seed1", "seed2", "seed3")


def recall() -> list[float]:
    """Evidence that FoPru keeps at a quarter: least and most over four trainings."""
    found = [half(seed, "fopru", 0.25).share("found") for seed in SEEDS]
    found.append(bench("fopru", 0.25).share("found"))
    return [min(found), max(found)]


def spread(other: str, retention: float) -> float:
    """Standard deviation over four trainings of FoPru minus another method, in exact match."""
    gaps = [gap(half(s, "fopru", retention), half(s, other, retention), "exact") for s in SEEDS]
    gaps.append(gap(bench("fopru", retention), bench(other, retention), "exact"))
    return float(np.std(gaps, ddof=1))


CLAIMS = [
    ("FoPru keeps {} to {} % of the evidence", recall),
    ("(random tokens: {} %)", lambda: bench("random", 0.25).share("found")),
    (
        "On the tower of captions it keeps {} %",
        lambda: half("captions", "fopru", 0.25).share("found"),
    ),
    ("CLS keeps {} % there", lambda: half("captions", "cls", 0.25).share("found")),
    (
        "That tower did not get far: {} % exact match",
        lambda: half("captions", "full").share("exact"),
    ),
    ("has a standard deviation of {} points", lambda: spread("divprune", 0.1)),
    (
        "with a grey picture {} % of the answers are malformed, without one {} %",
        lambda: [100 - bench(m).share("formed") for m in ("grey", "none")],
    ),
    (
        "the four floors lie between {} and {} %",
        lambda: [f([bench(m).share() for m in BLIND]) for f in (min, max)],
    ),
    (
        "FoPru has an ANLS of {} % and knows {} %",
        lambda: [bench("fopru", 0.1, task="documents").share(c) for c in ("score", "choice")],
    ),
    (
        "the guesser gets {} % of counting, and {} % of knowledge",
        lambda: [bench("guess", task=t).share() for t in ("counting", "knowledge")],
    ),
    (
        "between the guesser and the full model lie {} points",
        lambda: gap(bench("full", task="knowledge"), bench("guess", task="knowledge")),
    ),
    (
        "the full model knows {} %, the guesser has {} %",
        lambda: [bench(m, task="diagrams").share() for m in ("full", "guess")],
    ),
]
ASIDE = [
    "Where nearly all methods know 95 % and more",
    "one grid of 256 tokens",
    "53 % in Figure M.1 at the last step, where a guess among three has 33 %",
    "On things and text 96 % of the tokens say one of their words",
    'background says "nothing" on more than 99 %',
]
