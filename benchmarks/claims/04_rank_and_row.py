"""Numbers of chapter 4 that come from the committed answers; its own cells assert the rest."""

from prose import bench, gap


def lead(tokens: int) -> float:
    """Rank minus row in what is known, with the same number of tokens, in points."""
    return gap(bench("fopru", tokens / 256), bench("fopru-row", tokens / 256))


PAGE = "notebooks/04_rank_and_row.ipynb"
CLAIMS = [
    (
        "at all four budgets: {} points more with 64 tokens, and {} with 16.",
        lambda: [lead(64), lead(16)],
    ),
]
ASIDE = [
    "compared with 25 tokens and row with 16",
    "16, 32, 48 or 64 of the 256 tokens",
    "among 64 kept tokens",
    "With 16 tokens, one row",
    "below 64 tokens",
    "with 16 tokens the two readings",
    "With 64 tokens rank leads",
]
