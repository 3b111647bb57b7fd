"""Chapter 7: few significant tokens lack the end of the answer, not its digits."""

from prose import Rows, bench, gap

PAGE = "notebooks/07_redundancy.ipynb"


def signs(method: str) -> Rows:
    """The signs of the test split from twelve tokens."""
    rows = bench(method, 0.05, task="reading").rows
    return Rows(rows.assign(end=rows["loglik"] - rows["loglik_open"]))


CLAIMS = []
ASIDE = []
