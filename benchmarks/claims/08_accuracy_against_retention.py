"""Accuracy against retention."""

import numpy as np
from prose import Rows, bench, gap, lead, table

PAGE = "notebooks/08_accuracy_against_retention.ipynb"

SIX = ("presence", "attributes", "counting", "reading", "documents", "charts")


def known(method, retention=1.0, **equal):
    return bench(method, retention, **equal).share("choice")


def reach(one, other, column="choice", **equal):
    """Points between two settings, each a method, a retention and perhaps the positions, with the
    ends of the interval."""
    return lead(bench(*one, **equal), bench(*other, **equal), column)


def left(method, retention=0.1):
    """What is left of that which the picture gives, in the mean of six tasks."""
    shares = []
    for task in SIX:
        floor, full = known("guess", task=task), known("full", task=task)
        shares.append(100 * (known(method, retention, task=task) - floor) / (full - floor))
    return float(np.mean(shares))


def whole():
    """The ids of the counting questions whose evidence the oracle keeps whole at a tenth."""
    rows = bench("oracle", 0.1, task="counting").rows
    return list(rows[(rows["evidence"] > 0) & (rows["found"] == 1)]["id"])


def later(method, retention):
    return reach((method, retention), (f"{method}-later", retention))


def weightless():
    """VisPruner with weights and original ids minus the same without weights, on validation."""
    rows = Rows(table("validation")).where(positions="preserve")
    return lead(rows.where(method="vispruner-mass"), rows.where(method="vispruner"))


CLAIMS = [
    (
        "DivPrune and DPP with weights know {} % of *reading*, FoPru {} %, uniform tokens {} % and "
        "FoPru row {} %",
        lambda: [
            known(m, 0.1, task="reading") for m in ("dpp-mass", "fopru", "uniform", "fopru-row")
        ],
    ),
    (
        "With weights DPP knows {} % at a tenth, FoPru without them {} %",
        lambda: [known(m, 0.1, task="counting") for m in ("dpp-mass", "fopru")],
    ),
    (
        "On *knowledge* a guesser is right in {} %",
        lambda: known("guess", task="knowledge"),
    ),
    (
        "DPP with weights keeps {} % of what the picture gives, DivPrune without weights {} %, "
        "FoPru {} % and random tokens {} %",
        lambda: [left(m) for m in ("dpp-mass", "divprune", "fopru", "random")],
    ),
    (
        "at a tenth {} points more than random tokens",
        lambda: gap(bench("fopru", 0.1), bench("random", 0.1)),
    ),
    (
        "at a twentieth FoPru minus DivPrune is {} points [{}, {}]",
        lambda: reach(("fopru", 0.05), ("divprune", 0.05)),
        0.3,
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
        0.6,
    ),
    (
        "wrong tokens harm: {} % known at a tenth, against {} % with the right ones",
        lambda: [known("divprune-dealt", 0.1), known("divprune-mass", 0.1)],
    ),
    (
        "without them VisPruner loses {} points [{}, {}]",
        weightless,
        0.3,
    ),
]

ASIDE = []
