"""The project's committed results."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

WEB = "https://raw.githubusercontent.com/fopru/fopru/main/data/results"


def results(name: str) -> pd.DataFrame:
    """Read one of the project's committed tables of results.

    It is read from `data/results/` of a checkout; an installed package does not hold them and
    fetches the one that is asked for. The file of the same name that ends in `.json` says machine,
    versions, date, commit and command.

    Args:
        name: Its path in that folder, without its end: "pocketbench", "efficiency/pocket".

    Raises:
        ValueError: The name is not of this form.
        FileNotFoundError: The checkout has no such table.
        urllib.error.URLError: It cannot be fetched.
    """
    if not re.fullmatch(r"\w[\w-]*(/\w[\w-]*)*", name):
        raise ValueError(f"name={name!r}: is no name of a table such as 'efficiency/pocket'.")
    here = Path(__file__).parents[2] / "data" / "results"
    return pd.read_parquet(f"{here if here.is_dir() else WEB}/{name}.parquet")
