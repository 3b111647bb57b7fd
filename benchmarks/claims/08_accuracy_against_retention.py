"""Accuracy against retention."""

import numpy as np
from prose import bench, gap, over, shared

PAGE = "notebooks/08_accuracy_against_retention.ipynb"

SEVEN = ("presence", "attributes", "counting", "reading", "documents", "diagrams", "charts")


def known(method, retention=1.0, **equal):
    return bench(method, retention, **equal).share()


def fewer(method, retention=1.0, **equal):
    """Known, on the questions that all methods were asked."""
    return shared(bench(method, retention, **equal)).share()


def reach(one, other, column="choice", **equal):
    """Points between two settings, each a method, a retention and perhaps the positions: the mean
    over trainings, and the ends of all intervals."""
    return over(bench(*one, **equal), bench(*other, **equal), column)


def left(method, retention=0.1):
    """What is left of that which the picture gives, in the mean of seven tasks."""
    shares = []
    for task in SEVEN:
        floor, full = fewer("guess", task=task), fewer("full", task=task)
        shares.append(100 * (fewer(method, retention, task=task) - floor) / (full - floor))
    return float(np.mean(shares))


def filtered(method, retention=0.1):
    """Known, of the questions that the full picture answers and a smaller one does not."""
    settings = bench("full"), bench("smaller", retention), bench(method, retention)
    shares = []
    for full, small, some in zip(*(rows.apart() for rows in settings), strict=True):
        hard = full.each("choice").gt(0) & small.each("choice").eq(0)
        shares.append(some.where(id=list(hard[hard].index)).share())
    return float(np.mean(shares))


def whole():
    """The ids of the counting questions whose evidence the oracle keeps whole at a tenth."""
    rows = bench("oracle", 0.1, task="counting").rows
    return list(rows[(rows["evidence"] > 0) & (rows["found"] == 1)]["id"])


def later(method, retention):
    return reach((method, retention), (f"{method}-later", retention))


def without(switch):
    """Points that DPP knows more at a tenth with both switches than without one of them."""
    both = bench("dpp-mass", 0.1, "preserve")
    one = {"weights": ("dpp", 0.1, "preserve"), "ids": ("dpp-mass", 0.1, "reindex")}
    return over(both, bench(*one[switch]))


def trained(method, retention):
    """Known in the training that knows least, and in that which knows most."""
    shares = [rows.share() for rows in bench(method, retention).apart()]
    return [min(shares), max(shares)]


CLAIMS = [
    (
        "At a tenth of the tokens DPP knows {} % of *reading* and DivPrune {} %. FoPru knows {} %, "
        "FoPru row {} %",
        lambda: [fewer(m, 0.1, task="reading") for m in ("dpp", "divprune", "fopru", "fopru-row")],
    ),
    (
        "With half of them DivPrune knows {} % of *charts*; all tokens know {} %",
        lambda: [fewer("divprune", 0.5, task="charts"), fewer("full", task="charts")],
    ),
    (
        "FoPru loses least there: it knows {} %, DivPrune {} %",
        lambda: [fewer(m, 0.5, task="counting") for m in ("fopru", "divprune")],
    ),
    (
        "DivPrune knows {} %, CLS {} %, FoPru {} % and random tokens {} %.",
        lambda: [filtered(m) for m in ("divprune", "cls", "fopru", "random")],
    ),
    (
        "On *knowledge* a guesser is right in {} %",
        lambda: known("guess", task="knowledge"),
    ),
    (
        "DivPrune keeps {} % of what the picture gives, FoPru {} % and random tokens {} %",
        lambda: [left(m) for m in ("divprune", "fopru", "random")],
    ),
    (
        "FoPru minus DivPrune is {} points [{}, {}] at a quarter, and {} points [{}, {}] at a "
        "tenth",
        lambda: [
            *reach(("fopru", 0.25), ("divprune", 0.25)),
            *reach(("fopru", 0.1), ("divprune", 0.1)),
        ],
        0.5,
    ),
    (
        "at a tenth {} points more than random tokens",
        lambda: gap(bench("fopru", 0.1), bench("random", 0.1)),
    ),
    (
        "with a quarter of the tokens it knows {} % in one and {} % in another",
        lambda: trained("fastv", 0.25),
    ),
    (
        "PyramidDrop pays most, {} points at 10 %",
        lambda: later("pyramiddrop", 0.1)[0],
    ),
    (
        "On the {} counting questions whose evidence the oracle keeps whole at a tenth, it knows "
        "{} %, and the full model {} %",
        lambda: [len(whole()), known("oracle", 0.1, id=whole()), known("full", id=whole())],
    ),
    (
        "DivPrune at a quarter gains {} points [{}, {}] there",
        lambda: reach(("divprune-mass", 0.25), ("divprune", 0.25), task="counting"),
        0.9,
    ),
    (
        "at a tenth FoPru's malformed answers fall from {} % to {} %, and DivPrune's from {} % to "
        "{} %",
        lambda: [
            shared(bench(f"{m}{w}", 0.1)).share("malformed")
            for m in ("fopru", "divprune")
            for w in ("", "-mass")
        ],
    ),
    (
        "wrong tokens harm more: {} % known at a tenth, against {} % with the right ones",
        lambda: [fewer("divprune-dealt", 0.1), fewer("divprune-mass", 0.1)],
    ),
    (
        "DPP knows {} points [{}, {}] less without weights, and {} points [{}, {}] less with new "
        "ids",
        lambda: [*without("weights"), *without("ids")],
        0.5,
    ),
]

ASIDE = []
