"""How every command takes bad input, and keeps its results."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fopru.budgets import PAPERS

if TYPE_CHECKING:
    import pandas as pd
    import torch


TOKENS_HELP = (
    "Visual tokens kept of each picture, over all its views, in place of a share. "
    f"Papers keep {'; '.join(map(str, PAPERS.values()))}."
)


@contextmanager
def one_sentence() -> Iterator[None]:
    """End the command with one line on stderr and exit code 2 where input is bad or a package is
    missing."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        message = " ".join(str(error).split())
        typer.echo(f"fopru: {message}", err=True)
        raise typer.Exit(2) from None


@contextmanager
def noted() -> Iterator[None]:
    """Warnings are told at the end, each once and in one line, not amid the progress."""
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        try:
            yield
        finally:
            for text in dict.fromkeys(str(n.message) for n in notes if n.category is UserWarning):
                typer.echo(f"fopru: {' '.join(text.split())}", err=True)


def device_of(name: str | None) -> torch.device:
    """Return the device of this name, or without a name the first GPU of CUDA, else the CPU.

    Raises:
        ValueError: this machine has no such device.
    """
    import torch

    cuda = torch.cuda.is_available()
    try:
        device = torch.device(name or ("cuda" if cuda else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        here = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise ValueError(
            f"device={name!r}: this machine has no such device; it has {', '.join(here)}."
        ) from None
    return device


def check_parquet(out: Path) -> None:
    """Check that a file ends in .parquet, and that its folder exists."""
    if out.suffix != ".parquet":
        raise ValueError(f"out {out}: must end in .parquet.")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"out {out}: there is no folder {out.parent}.")


def check_out(out: Path, columns: frozenset[str]) -> None:
    """Refuse early what results cannot go to, or what is not theirs to overwrite.

    Args:
        out: The table's file; what it was made with goes to the .json beside it.
        columns: Those by which a table of this command is known.

    Raises:
        ValueError: A file that is there and holds something else, or a name without .parquet.
        OSError: The folder is missing.
    """
    check_parquet(out)
    if out.exists() and not columns <= _columns(out):
        raise ValueError(f"out {out}: is there and holds other things: name another file.")
    beside = out.with_suffix(".json")
    if beside.exists() and not _is_provenance(beside):
        raise ValueError(
            f"out {out}: {beside} is there and is not of fopru, and would be overwritten: name "
            "another file."
        )


def _columns(path: Path) -> set[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return set(pq.read_schema(path).names)
    except (pa.ArrowInvalid, OSError):
        return set()


def _is_provenance(path: Path) -> bool:
    """Whether a .json is one that `keep` wrote."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        return False
    return isinstance(found, dict) and {"fopru", "torch", "command"} <= found.keys()


def keep(results: pd.DataFrame, out: Path, **more: Any) -> None:
    """Write a table, and beside it how it was made, with what more is known of that."""
    from fopru.evaluation.store import provenance

    results.to_parquet(out, index=False, compression="zstd")
    out.with_suffix(".json").write_text(json.dumps({**provenance(), **more}, indent=1) + "\n")


def percent(cell: pd.DataFrame) -> str:
    """Return a share, and below it its interval, which a single picture has none of."""
    if cell["mean"].isna().all():
        return "-"
    mean, low, high = (100 * cell[name].item() for name in ("mean", "low", "high"))
    return f"{mean:.1f}\n" + (f"{low:.0f}-{high:.0f}" if low == low else "one picture")
