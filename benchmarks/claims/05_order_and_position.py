"""Chapter 5: what new position ids cost, and what weights add; its own cells assert the rest."""

from prose import bench, gap


def cost(column: str) -> float:
    """Points that new ids cost FoPru at a tenth, over all questions."""
    return gap(bench("fopru", 0.1, "preserve"), bench("fopru", 0.1, "reindex"), column)


def mixed(positions: str, retention: float, **equal) -> float:
    """Points of known answers that mixing the kept tokens costs FoPru."""
    settings = (bench(m, retention, positions, **equal) for m in ("fopru", "fopru-shuffled"))
    return gap(*settings)


PAGE = "notebooks/05_order_and_position.ipynb"
CLAIMS = [
    (
        "At a tenth of the tokens they cost {} points of known answers and {} of said ones.",
        lambda: [cost("choice"), cost("exact")],
    ),
    (
        "At a quarter of the tokens mixing costs {} points of known answers with own ids, and {} "
        "with new ones",
        lambda: [mixed(ids, 0.25) for ids in ("preserve", "reindex")],
    ),
    (
        "With new ids *documents* lose {} points and *reading* {}; with own ids they lose {} and "
        "{}",
        lambda: [
            mixed(ids, 0.25, task=task)
            for ids in ("reindex", "preserve")
            for task in ("documents", "reading")
        ],
    ),
    (
        "mixing costs {} and {} points of all",
        lambda: [mixed(ids, 0.1) for ids in ("preserve", "reindex")],
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
