"""Chapter 12: what a real tower looks at, counted again from the table of `look`."""

import numpy as np
from prose import table

PAGE = "notebooks/12_real_eye.ipynb"
SETS = ("1", "3", "photograph")


def values(measure: str, what: str, block: int, of: str, retention: float | None = None):
    """Picture -> percent, at 224 pixels."""
    rows = table("real_eye/look")
    rows = rows[(rows["size"] == 224) & (rows["set"] == of) & (rows["measure"] == measure)]
    rows = rows[(rows["what"] == what) & (rows["block"] == block)]
    if retention is not None:
        rows = rows[np.isclose(rows["retention"], retention)]
    if rows.empty or rows["picture"].duplicated().any():
        raise ValueError(f"{len(rows)} rows of {measure}, {what}, block {block}, {of}")
    return 100 * rows.set_index("picture")["value"].astype(float)


def ahead(axis: str, block: int, of: str, draws: int = 20000) -> list[float]:
    """Points of AUC by which an axis leads contrast: mean, 2.5 and 97.5 percentiles."""
    away = values("auc", f"{axis}, probabilities", block, of) - values("auc", "contrast", -1, of)
    drawn = np.random.default_rng(12).choice(away.to_numpy(), (draws, len(away))).mean(1)
    return [away.mean(), *np.quantile(drawn, [0.025, 0.975])]


def behind(axis: str, block: int, of: str) -> list[float]:
    """The same the other way round."""
    mean, low, high = ahead(axis, block, of)
    return [-mean, -high, -low]


def kept(*methods: str) -> list[float]:
    """Percent of a lone object among the quarter that they keep by block 10."""
    return [values("kept", m, 10, "1", 0.25).mean() for m in methods]


def received_wins() -> float:
    """Percent of all pictures on which received varies more, on logits in block 10."""
    found = [values("received wins", "logits", 10, of) for of in SETS]
    return float(np.concatenate(found).mean())


DRAWN = 0.2
"""How far two bootstraps of these sizes may differ, in points."""

CLAIMS = [
    (
        "significance beats contrast by {} points of AUC [{}, {}] on lone objects.",
        lambda: ahead("received", 10, "1"),
        DRAWN,
    ),
    (
        "With three objects the lead is {} points [{}, {}]",
        lambda: ahead("received", 10, "3"),
        DRAWN,
    ),
    (
        "On photographs it is *behind* by {} points [{}, {}]",
        lambda: behind("received", 10, "photograph"),
        DRAWN,
    ),
    (
        "even CLS is level with contrast there: {} points ahead [{}, {}].",
        lambda: ahead("cls", 10, "photograph"),
        DRAWN,
    ),
    (
        "it wins everywhere, on photographs by {} points [{}, {}].",
        lambda: ahead("received", 9, "photograph"),
        DRAWN,
    ),
    ("On logits in block 10 it wins on {} % of the pictures", received_wins),
    (
        "**DivPrune** keeps {} %, **rank** {} %, contrast {} %, **row** {} %.",
        lambda: kept("divprune", "fopru", "contrast", "fopru-row"),
    ),
]
ASIDE = []
