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
        "With FoPru's, by {} points.",
        lambda: gap(bench("fopru", 0.05), bench("random", 0.05)),
    ),
    (
        "Yet with random tokens the model knows {} points less.",
        lambda: gap(bench("fopru", 0.05), bench("random", 0.05)),
    ),
    (
        "From twelve significant tokens the digits of the {} test signs",
        lambda: signs("fopru").rows["image"].nunique(),
    ),
    (
        "have a median log-likelihood of {} nats and the end one of {}. From twelve random ones "
        "the digits have {} and the end {}.",
        lambda: digits_and_end("fopru") + digits_and_end("random"),
    ),
]
ASIDE = [
    "of 256 tokens in 128 dimensions",
    "two to eleven points",  # this and the next are asserted by a cell
    "From eight tokens or fewer",
]
