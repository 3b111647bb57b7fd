"""Chapter 7: few significant tokens lack the end of the answer, not its digits."""

from prose import Rows, bench, gap

PAGE = "notebooks/07_redundancy.ipynb"


def signs(method: str) -> Rows:
    """The signs of the test split from twelve tokens."""
    rows = bench(method, 0.05, task="reading").rows
    return Rows(rows.assign(end=rows["loglik"] - rows["loglik_open"]))


def digits_and_end(method: str) -> list[float]:
    return [signs(method).median("loglik_open"), signs(method).median("end")]


CLAIMS = [
    (
        "At a twentieth random tokens cover far better than FoPru's and let the model know {} "
        "points less.",
        lambda: gap(bench("fopru", 0.05), bench("random", 0.05)),
    ),
    (
        "On the {} signs of the test split, each on its own picture, twelve significant tokens",
        lambda: signs("fopru").rows["image"].nunique(),
    ),
    (
        "give the digits a median log-likelihood of {} nats and the end one of {}; twelve random "
        "ones give the digits {} and the end {}.",
        lambda: digits_and_end("fopru") + digits_and_end("random"),
    ),
    (
        "From those twelve the model knows {} % of the signs and says {} %; from twelve random "
        "ones {} % and {} %.",
        lambda: [signs(m).share(c) for m in ("fopru", "random") for c in ("choice", "exact")],
    ),
]
ASIDE = [
    "of 256 tokens in 128 dimensions",
    "After four random tokens or more",  # this and the next are asserted by a cell
    "Sixteen of the most significant tokens",
    "after the 128 most significant tokens are deleted",
    "128 random tokens",
    "at 16 tokens of the most significant",
]
