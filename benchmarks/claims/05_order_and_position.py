"""Chapter 5: what numbering the kept tokens anew changes, what mixing them does, and weights."""

import pandas as pd
from prose import bench, ends, gap

PAGE = "notebooks/05_order_and_position.ipynb"


def kept(retention: float, method: str = "fopru", **equal):
    """The original position ids."""
    return bench(method, retention, "preserve", **equal)


def anew(retention: float, method: str = "fopru", **equal):
    """Ids without gaps."""
    return bench(method, retention, "reindex", **equal)


def cost(column: str, retention: float, **equal) -> float:
    """Points that numbering anew costs FoPru."""
    return gap(kept(retention, **equal), anew(retention, **equal), column)


def range_of(column: str, retention: float, **equal) -> list[float]:
    return ends(kept(retention, **equal), anew(retention, **equal), column)


def costs(column: str) -> list[float]:
    """On three tasks at a tenth."""
    return [cost(column, 0.1, task=task) for task in ("attributes", "documents", "charts")]


def variant(name: str, column: str = "choice") -> float:
    return cost(column, 0.1, task="attributes", variant=name)


def too_low(rows) -> float:
    """Percent of the answers that are a number below the right one."""
    said = pd.to_numeric(rows.rows["prediction"], errors="coerce")
    return 100 * float((said < rows.rows["answer"].astype(int)).mean())


def mixed(retention: float = 0.25, **equal) -> tuple:
    """What mixing changes of what is said, numbered anew."""
    return anew(retention, "fopru-shuffled", **equal), anew(retention, **equal), "exact"


def four(method: str, column: str) -> list[float]:
    """At a tenth: ids anew, kept ids, weights, both."""
    settings = ((anew, ""), (kept, ""), (anew, "-mass"), (kept, "-mass"))
    return [ids(0.1, method + weights).share(column) for ids, weights in settings]


def weights_take(method: str, retention: float) -> float:
    """Of what is known with kept ids."""
    return gap(kept(retention, method), kept(retention, f"{method}-mass"))


COUNTING = {"task": "counting"}
CLAIMS = [
    (
        "Over all tasks it costs {} points of known answers at a quarter of the tokens, [{}, {}]",
        lambda: [cost("choice", 0.25), *range_of("choice", 0.25)],
        0.1,
    ),
    (
        "and {} at a tenth, [{}, {}]. Of",
        lambda: [cost("choice", 0.1), *range_of("choice", 0.1)],
        0.1,
    ),
    (
        "Of said answers it costs {} and {} points.",
        lambda: [cost("exact", 0.25), cost("exact", 0.1)],
    ),
    (
        "the said answers of *attributes* fall by {} points, those of *documents* by {} and those "
        "of *charts* by {}",
        lambda: costs("exact"),
    ),
    ("the known ones fall by {}, {} and {}.", lambda: costs("choice")),
    (
        "numbering anew takes {} points of said answers from *color*",
        lambda: variant("color", "exact"),
    ),
    (
        "that of *shape*, {} points. *Place* loses {} and *relation* {}.",
        lambda: [variant("shape"), variant("place"), variant("relation")],
    ),
    (
        "At a tenth numbering anew gains {} points of said answers there.",
        lambda: -cost("exact", 0.1, **COUNTING),
    ),
    (
        "Of known ones it costs {} points, [{}, {}]",
        lambda: [cost("choice", 0.1, **COUNTING), *range_of("choice", 0.1, **COUNTING)],
        0.5,
    ),
    (
        "too low are {} % of the answers with kept ids and {} % of those numbered anew",
        lambda: [too_low(kept(0.1, **COUNTING)), too_low(anew(0.1, **COUNTING))],
    ),
    (
        "no legal number, {} % against {} %",
        lambda: [ids(0.1, **COUNTING).share("malformed") for ids in (kept, anew)],
    ),
    (
        "moves the said answers of all tasks together by {} points at a quarter of the tokens, "
        "[{}, {}]",
        lambda: [gap(*mixed()), *ends(*mixed())],
        0.1,
    ),
    (
        "The largest loss is {} points, of said answers on *reading* at a tenth; the largest "
        "*gain* is {} points, of said answers on *documents* at a quarter.",
        lambda: [-gap(*mixed(0.1, task="reading")), gap(*mixed(task="documents"))],
    ),
    (
        "FoPru knows {} % of the answers with ids numbered anew and no weights, {} % with kept "
        "ids, {} % with weights and {} % with both.",
        lambda: four("fopru", "choice"),
    ),
    ("It says {} %, {} %, {} % and {} %.", lambda: four("fopru", "exact")),
    (
        "DPP, which spreads its tokens, knows {} %, {} %, {} % and {} %.",
        lambda: four("dpp", "choice"),
    ),
    (
        "at a tenth they take {} points of what `cls` knows even with kept ids, and at a "
        "twentieth {} points of what FoPru knows",
        lambda: [weights_take("cls", 0.1), weights_take("fopru", 0.05)],
    ),
]
ASIDE = [
    "by more than 1.5 points",  # asserted by a cell
    "with 95 % confidence",
    "a gain of 7.0 there",  # of an earlier table, whose orders were drawn otherwise
    "LLaVA-1.5-7B at 64 tokens",
]
