"""Numbers of chapter 4 that come from the committed answers."""

from prose import Rows, bench, ends, gap, table

PAGE = "notebooks/04_rank_and_row.ipynb"


def two(tokens, **equal):
    """Rank and row with the same number of tokens."""
    return [bench(method, tokens / 256, **equal) for method in ("fopru", "fopru-row")]


def lead(tokens, column, sign=1, **equal):
    """Rank minus row (or row minus rank), with its interval."""
    pair = two(tokens, **equal)[::sign]
    return [gap(*pair, column), *ends(*pair, column)]


def found(task):
    return [rows.share("found") for rows in two(64, task=task)]


def other(seed):
    rows = Rows(table("pocket/half")).where(model=seed, retention=0.25)
    return gap(rows.where(method="fopru"), rows.where(method="fopru-row"), "exact")


def shares(tokens, *columns, **equal):
    return [rows.share(column) for rows in two(tokens, **equal) for column in columns]


CLAIMS = [
    ("two or three, it holds {} % and row {} %", lambda: found("reading")),
    ("rank holds {} % and row {} %: to keep", lambda: found("documents")),
    ("by {} points [{}, {}] with 64 tokens, and by", lambda: lead(64, "choice"), 0.3),
    ("and by {} [{}, {}] with 16.", lambda: lead(16, "choice"), 0.3),
    (
        "with 64 tokens is reading ({} points) and documents ({})",
        lambda: [lead(64, "choice", task=task)[0] for task in ("reading", "documents")],
    ),
    ("lead is {} points [{}, {}] with 64 tokens", lambda: lead(64, "exact"), 0.3),
    ("With 16 it is {} [{}, {}],", lambda: lead(16, "exact"), 0.3),
    (
        "on charts by {} points [{}, {}]",
        lambda: lead(64, "exact", -1, task="charts"),
        0.6,
    ),
    (
        "on attributes by {} [{}, {}].",
        lambda: lead(64, "exact", -1, task="attributes"),
        0.6,
    ),
    (
        "knows {} % of the charts' answers and says {} %; with row's it knows {} % and says {} %",
        lambda: shares(64, "choice", "exact", task="charts"),
    ),
    (
        "with 16 renumbered tokens {} % of the answers are malformed with rank, and {} % with row",
        lambda: shares(16, "malformed"),
    ),
    (
        "with rank the model knows {} points more, and with row it says {} points more",
        lambda: [
            lead(16, "choice", task="presence")[0],
            lead(16, "exact", -1, task="presence")[0],
        ],
    ),
    (
        "by what is said between {} and {} points",
        lambda: sorted(lead(k, "exact", positions="preserve")[0] for k in (16, 32, 48, 64))[::3],
    ),
    (
        "rank minus row is {}, {} and {} points",
        lambda: [other(f"seed{i}") for i in (1, 2, 3)],
    ),
]
ASIDE = [
    "256 tokens",
    "25 tokens",
    "16 tokens, of row",
    "With 64 tokens row is ahead",
    "16, 32, 48 or 64 tokens",
    "64 kept tokens",
    "with 64 tokens",
    "with 16 tokens",
    "below 64 tokens",
    "from 27 points to about nothing",  # asserted by a cell
]
