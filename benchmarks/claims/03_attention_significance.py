"""Numbers of chapter 3: those of its figure of answers; its own cells assert the others."""

from prose import Rows, bench, gap, table

PACKAGE = bench("fopru", 0.25)


def cost(method: str) -> float:
    """Points of what is known with 64 tokens, against the package's reading."""
    return gap(PACKAGE, bench(method, 0.25))


def captions(method: str) -> float:
    """Evidence that the model trained on captions keeps at a quarter, percent."""
    rows = Rows(table("pocket/half")).where(model="captions", retention=0.25)
    return rows.where(method=method).share("found")


PAGE = "notebooks/03_attention_significance.ipynb"
CLAIMS = [
    (
        "With 64 tokens the criterion on logits costs {} points of what is known; *received* on "
        "logits changes it by {}, which",
        lambda: [
            cost("fopru, scores=logits"),
            -cost("fopru, axis=received, scores=logits"),
        ],
    ),
    (
        "*fewer* evidence patches than chance, {} % against {} %",
        lambda: [captions("fopru"), captions("random")],
    ),
]
ASIDE = [
    "With 64 tokens *received*",
    "A random quarter holds 25 %",
]
