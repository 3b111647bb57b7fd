"""Numbers of chapter 4 that come from the committed answers; its own cells assert the rest."""

from prose import bench, gap


def lead(tokens: int, **equal) -> float:
    """Rank minus row in what is known, with the same number of tokens, in points."""
    return gap(*(bench(m, tokens / 256, **equal) for m in ("fopru", "fopru-row")))


PAGE = "notebooks/04_rank_and_row.ipynb"
CLAIMS = [
    (
        "knows more than with row's, by {} points, and with 64 by {} points",
        lambda: [lead(16), lead(64)],
    ),
    (
        "On *documents* row is ahead with 64 tokens, by {} points",
        lambda: -lead(64, task="documents"),
    ),
]
ASIDE = [
    "compared with 25 tokens and row with 16",
    "16, 32, 48 or 64 of the 256 tokens",
    "among 64 kept tokens",
    "with 16 tokens the two readings",
    "but for what is said with 16 tokens",
    "With 64 tokens numbered anew",
    "With rank's 16 tokens",
]
