"""How every command takes bad input, and keeps its results."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import typer

from fopru.evaluation.store import provenance


@contextmanager
def one_sentence() -> Iterator[None]:
    """Bad input ends the command with one sentence on stderr and exit code 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        message = " ".join(str(error).split())
        typer.echo(f"fopru: {message}", err=True)
        raise typer.Exit(2) from None


def check_parquet(out: Path) -> None:
    if out.suffix != ".parquet":
        raise ValueError(f"out {out}: must end in .parquet.")


def keep(results: pd.DataFrame, out: Path) -> None:
    """Write a table, and beside it how it was made."""
    results.to_parquet(out, index=False, compression="zstd")
    out.with_suffix(".json").write_text(json.dumps(provenance(), indent=1) + "\n")
