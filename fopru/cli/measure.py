"""`fopru measure`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

import fopru
from fopru.arguments import check_integer
from fopru.cli.common import TOKENS_HELP, check_out, device_of, keep, noted, one_sentence

if TYPE_CHECKING:
    import pandas as pd

    from fopru.evaluation.settings import Setting

TABLE = frozenset({"method", "stage", "seconds"})
"""The columns by which a table of times is known."""


def measure(
    shape: Annotated[
        str | None,
        typer.Option(help="True size, random weights: a name in fopru.efficiency.SHAPES."),
    ] = None,
    model: Annotated[
        str, typer.Option(help="pocket, a Hugging Face id, or a folder; where no shape is given.")
    ] = "pocket",
    method: Annotated[
        list[str] | None, typer.Option(help="Once per method; fopru if none.")
    ] = None,
    retention: Annotated[
        list[float] | None, typer.Option(help="Once per share kept; 0.5, 0.25, 0.1 if none.")
    ] = None,
    tokens: Annotated[
        list[int] | None, typer.Option(help=f"Once per number. {TOKENS_HELP}")
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(help="Of every method, once each: none, mass, restore; none if not given."),
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Once per batch size; 1 if none.")] = None,
    text: Annotated[int, typer.Option(help="Tokens of a shape's prompt beside the picture.")] = 44,
    new_tokens: Annotated[int, typer.Option(help="Length of the answers.")] = 8,
    turns: Annotated[int, typer.Option(help="How often each stage is timed.")] = 7,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    dtype: Annotated[
        str, typer.Option(help="Of a model's weights, as bfloat16; auto is that of the files.")
    ] = "auto",
    attention: Annotated[str, typer.Option(help="sdpa, eager, flash_attention_2.")] = "sdpa",
    out: Annotated[Path | None, typer.Option(help="Results, .parquet; more are added.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be run.")] = False,
) -> None:
    """What pruning saves: seconds of each stage, beside the model as it is."""
    with one_sentence(), noted():
        for name, value in (("new_tokens", new_tokens), ("turns", turns), ("text", text)):
            check_integer(name, value, minimum=1)
        for size in batch or [1]:
            check_integer("batch", size, minimum=1)
        if out is not None:
            check_out(out, TABLE)
        import pandas as pd  # and torch, which help and bad input need not wait for

        efficiency, asking = fopru.efficiency, fopru.evaluation.asking
        settings = fopru.evaluation.settings
        methods = [
            settings.as_pruner(name, fopru.METHODS, weights=kind)
            for kind in weights or ["none"]
            for name in method or ["fopru"]
        ]
        cells = settings.settings(methods, retention or None, tokens=tokens or None)
        pruners = [cell.pruner for cell in cells]
        if dry_run:
            _say(shape or model, device, [settings.label(m) for m in methods], cells, batch or [1])
            return
        if shape is None:
            net, processor = fopru.load(model, dtype=dtype)
            net.to(device_of(device))
        else:
            net, processor = efficiency.build(shape, device), None
        try:
            net.set_attn_implementation(attention)
        except ImportError as error:
            raise ValueError(f"attention={attention!r}: {error}") from None
        tables = []
        for size in batch or [1]:
            if processor is None:
                inputs = efficiency.prompt(net, text, size)
            else:
                inputs = asking.inputs_of(processor, fopru.pocket.sample("reading", n=size))
            table = efficiency.measure(net, inputs, pruners, new_tokens, turns)
            tables.append(
                table.assign(model=shape or model, device=_named(device), attention=attention)
            )
        results = pd.concat(tables, ignore_index=True).assign(**tables[0].attrs)
        if out is not None:
            before = [pd.read_parquet(out)] if out.exists() else []
            keep(pd.concat([*before, results], ignore_index=True), out)
    _show(results)


def _named(device: str) -> str:
    import torch

    cuda = torch.device(device).type == "cuda"
    return torch.cuda.get_device_name(device) if cuda else device


def _say(
    name: str, device: str, methods: list[str], cells: list[Setting], batches: list[int]
) -> None:
    import torch

    efficiency = fopru.efficiency
    if name in efficiency.SHAPES:
        net = efficiency.empty(name)
        present = torch.device(device).type != "cuda" or torch.cuda.is_available()
        needed, available = efficiency.memory(net, device if present else "cpu")
        room = f"{available / 1e9:.1f} GB there" if present else "no CUDA device here"
        typer.echo(f"{name} in bfloat16: needs {needed / 1e9:.1f} GB on {device}, {room}")
    else:
        typer.echo(f"{name} on {device}")
    kept = dict.fromkeys(
        str(cell.retention) if cell.budget is None else f"{cell.budget} tokens"
        for cell in cells
        if cell.pruner.budgeted
    )
    for size in batches:
        budgets = f" at {', '.join(kept)}" if kept else ""
        typer.echo(f"batch {size}: full, {', '.join(methods)}{budgets}")


def _show(results: pd.DataFrame) -> None:
    stages = [*fopru.efficiency.STAGES, "native prefill", "end to end"]
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
