"""Chapter 5: what new position ids cost, and what weights add; its own cells assert the rest."""

from prose import bench, gap


def cost(column: str) -> float:
    """Points that new ids cost FoPru at a tenth, over all questions."""
    return gap(bench("fopru", 0.1, "preserve"), bench("fopru", 0.1, "reindex"), column)


PAGE = "notebooks/05_order_and_position.ipynb"
CLAIMS = [
    (
        "At a tenth of the tokens they cost {} points of known answers and {} of said ones.",
        lambda: [cost("choice"), cost("exact")],
    ),
    (
        "At a tenth FoPru knows {} % of the answers with new ids and no weights, and {} % with "
        "own ids and weights",
        lambda: [
            bench("fopru", 0.1, "reindex").share(),
            bench("fopru-mass", 0.1, "preserve").share(),
        ],
    ),
]
ASIDE = [
    "with 95 % confidence",
    "On LLaVA-1.5-7B at 64 tokens",
]
