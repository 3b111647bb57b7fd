"""What `fopru measure` does: the pruners of its options, their times, and the table of them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
import typer
from rich.console import Console
from rich.table import Table

from fopru import efficiency, load
from fopru.cli.common import device_of, keep
from fopru.evaluation.asking import prepare, prompts
from fopru.evaluation.settings import as_pruner, settings
from fopru.pocket import sample
from fopru.pruner import METHODS, Pruner


def methods(names: Sequence[str], weights: Sequence[str]) -> list[Pruner]:
    """Return the methods of these names, each with each kind of weights.

    Raises:
        ValueError: there is no such method, or it takes no weights.
    """
    return [as_pruner(name, METHODS, weights=kind) for kind in weights for name in names]


def pruners(methods: Sequence[Pruner], retentions: Sequence[float]) -> list[Pruner]:
    """Return each method at each retention.

    Raises:
        ValueError: a retention outside of (0, 1], or anything twice.
    """
    return [cell.pruner for cell in settings(methods, retentions)]


def results(
    shape: str | None,
    model: str,
    pruners: Sequence[Pruner],
    batches: Sequence[int],
    text: int,
    new_tokens: int,
    turns: int,
    device: str,
    dtype: str,
    attention: str,
) -> pd.DataFrame:
    """Return the tables of `fopru.measure` for all batch sizes, with model, device and attention.

    Raises:
        ValueError, OSError: as of `fopru.load`, `fopru.efficiency.build` and `fopru.measure`.
    """
    if shape is None:
        net, processor = load(model, dtype=dtype)
        net.to(device_of(device))
    else:
        net, processor = efficiency.build(shape, device), None
    try:
        net.set_attn_implementation(attention)
    except ImportError as error:
        raise ValueError(f"attention={attention!r}: {error}") from None
    tables = []
    for size in batches:
        if processor is None:
            inputs = efficiency.prompt(net, text, size)
        else:
            examples = sample("reading", n=size)
            inputs = prepare(processor, examples, prompts(processor, examples))
        table = efficiency.measure(net, inputs, pruners, new_tokens, turns)
        tables.append(
            table.assign(model=shape or model, device=_named(device), attention=attention)
        )
    return pd.concat(tables, ignore_index=True).assign(**tables[0].attrs)


def add(results: pd.DataFrame, out: Path) -> None:
    """Write a table, after the rows that the file has already."""
    before = [pd.read_parquet(out)] if out.exists() else []
    keep(pd.concat([*before, results], ignore_index=True), out)


def _named(device: str) -> str:
    cuda = torch.device(device).type == "cuda"
    return torch.cuda.get_device_name(device) if cuda else device


def announce(
    name: str,
    device: str,
    methods: Sequence[Pruner],
    retentions: Sequence[float],
    batches: Sequence[int],
) -> None:
    """Print what would be measured, and whether there is memory for it."""
    if name in efficiency.SHAPES:
        net = efficiency.empty(name)
        present = torch.device(device).type != "cuda" or torch.cuda.is_available()
        needed, available = efficiency.memory(net, device if present else "cpu")
        room = f"{available / 1e9:.1f} GB there" if present else "no CUDA device here"
        typer.echo(f"{name} in bfloat16: needs {needed / 1e9:.1f} GB on {device}, {room}")
    else:
        typer.echo(f"{name} on {device}")
    names, shares = ", ".join(m.label for m in methods), ", ".join(map(str, retentions))
    for size in batches:
        typer.echo(f"batch {size}: full, {names} at {shares}")


def show(results: pd.DataFrame) -> None:
    """Print the times, in milliseconds, and the size of the KV cache, in megabytes."""
    stages = [*efficiency.STAGES, "native prefill", "end to end"]
    table = Table("batch", "method", "visual", *(f"{stage} (ms)" for stage in stages), "KV (MB)")
    for (size, name, _, visual), part in results.groupby(
        ["batch", "method", "retention", "visual"], sort=False
    ):
        by = part.set_index("stage")
        cells = []
        for stage in stages:
            timed = stage in by.index
            mark = "*" if timed and by.unstable[stage] else ""
            cells.append(f"{1000 * by.seconds[stage]:.1f}{mark}" if timed else "")
        table.add_row(str(size), name, str(visual), *cells, f"{part.kv_bytes.iloc[0] / 1e6:.1f}")
    Console(file=sys.stdout, width=160).print(table)
    if results.unstable.any():
        typer.echo("* quartiles more than 15 % of the median apart: measure on a quieter machine.")
