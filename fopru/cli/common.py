"""How every command takes bad input, and keeps its results."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    import pandas as pd
    import torch


@contextmanager
def one_sentence() -> Iterator[None]:
    """Bad input, or a package that is missing, ends the command with one line on stderr and exit
    code 2."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        message = " ".join(str(error).split())
        typer.echo(f"fopru: {message}", err=True)
        raise typer.Exit(2) from None


def device_of(name: str | None) -> torch.device:
    """The device of this name; without a name the first GPU of CUDA, or the CPU.

    Raises:
        ValueError: this machine has no such device.
    """
    import torch

    there = torch.cuda.is_available()
    try:
        device = torch.device(name or ("cuda" if there else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        here = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise ValueError(
            f"device={name!r}: this machine has no such device; it has {', '.join(here)}."
        ) from None
    return device


def check_parquet(out: Path) -> None:
    if out.suffix != ".parquet":
        raise ValueError(f"out {out}: must end in .parquet.")


def keep(results: pd.DataFrame, out: Path) -> None:
    """Write a table, and beside it how it was made."""
    from fopru.evaluation.store import provenance

    results.to_parquet(out, index=False, compression="zstd")
    out.with_suffix(".json").write_text(json.dumps(provenance(), indent=1) + "\n")
