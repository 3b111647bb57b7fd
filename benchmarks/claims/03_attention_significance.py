"""Numbers of chapter 3: those of its figure of answers; its own cells assert the others."""

from prose import Rows, bench, gap, table

PACKAGE = bench("fopru", 0.25)


def cost(method: str) -> float:
    """Points of what is known with 64 tokens, against the package's reading."""
    return gap(PACKAGE, bench(method, 0.25))


def short_cut() -> list[float]:
    """Of the training in which *given* on probabilities keeps most evidence in 64 tokens: that, the
    evidence of the package's reading, and the points that the model knows less."""
    settings = PACKAGE, bench("fopru, axis=given", 0.25)
    pairs = zip(*(rows.apart() for rows in settings), strict=True)
    package, given = max(pairs, key=lambda pair: pair[1].share("found"))
    return [given.share("found"), package.share("found"), gap(package, given)]


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
        "*given* on probabilities keeps {} % of the evidence in 64 tokens and the package's "
        "reading {} %, and still the model knows {} points less",
        short_cut,
    ),
    (
        "In the two others FoPru's quarter holds {} and {} % of the evidence of *charts*, and {} "
        "and {} % of that of *diagrams*",
        lambda: [
            rows.share("found")
            for task in ("charts", "diagrams")
            for rows in bench("fopru", 0.25, task=task).apart()[1:]
        ],
    ),
    (
        "*fewer* evidence patches than chance, {} % against {} %",
        lambda: [captions("fopru"), captions("random")],
    ),
]
ASIDE = [
    "A random quarter holds 25 %",
]
