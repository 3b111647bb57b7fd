"""Numbers of chapter 3: those of its table of answers; its own cells assert the others."""

from prose import Rows, bench, gap, table

LOGITS = "fopru, scores=logits"
RECEIVED = "fopru, axis=received, scores=logits"


def costs(method, tokens):
    """Points of what is known and of what is said, against the package's reading."""
    share = {64: 0.25, 25: 0.1}[tokens]
    pair = bench("fopru", share), bench(method, share)
    return [gap(*pair, "choice"), gap(*pair, "exact")]


def found():
    return [bench(m, 0.25).share("found") for m in (RECEIVED, "fopru")]


def other(model, method="fopru"):
    rows = Rows(table("pocket/half")).where(model=model, retention=0.25)
    return rows.where(method=method).share("found")


PAGE = "notebooks/03_attention_significance.ipynb"
CLAIMS = [
    (
        "With 64 tokens it costs {} points of what is known and {} of what is said",
        lambda: costs(LOGITS, 64),
    ),
    ("and with 25 tokens {} and {}.", lambda: costs(LOGITS, 25)),
    ("would have cost {} and {} points with 64 tokens", lambda: costs(RECEIVED, 64)),
    ("{} against {} %, and the model knows fewer", found),
    (
        "*fewer* evidence patches than chance, {} % against {} %",
        lambda: [other("captions"), other("captions", "random")],
    ),
    (
        "finds {} to {} % (seen in other trainings)",
        lambda: sorted(other(f"seed{i}") for i in (1, 2, 3))[::2],
    ),
]
ASIDE = [
    "With 64 tokens",
    # asserted by the page
    "In object scenes 52 % of what FoPru keeps at a quarter is plain background, against 74 %",
    "at a tenth it is 23 %",
    "34, 41 and 15 %",
]
