"""Chapter 5: what numbering the kept tokens anew changes, and mixing them."""

import pandas as pd
from prose import bench, ends, gap

PAGE = "notebooks/05_order_and_position.ipynb"


def kept(retention: float, method: str = "fopru", **equal):
    """The original position ids."""
    return bench(method, retention, "preserve", **equal)


def anew(retention: float, method: str = "fopru", **equal):
    """Ids without gaps."""
    return bench(method, retention, "reindex", **equal)


def cost(column: str, retention: float, method: str = "fopru", **equal) -> float:
    """Points that numbering anew costs."""
    return gap(kept(retention, method, **equal), anew(retention, method, **equal), column)


def range_of_cost(column: str, retention: float) -> list[float]:
    return ends(kept(retention), anew(retention), column)


def mixed(column: str, retention: float, **equal) -> tuple:
    """Mixed and in order, numbered anew."""
    return (anew(retention, "fopru-shuffled", **equal), anew(retention, **equal), column)


def too_low(rows) -> float:
    """Percent of the answers that are a number below the right one."""
    said = pd.to_numeric(rows.rows["prediction"], errors="coerce")
    return 100 * float((said < rows.rows["answer"].astype(int)).mean())


COUNTING = {"task": "counting"}
TASKS = ("attributes", "documents", "charts")
CLAIMS = []
ASIDE = []
