"""`fopru measure`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fopru.arguments import check_integer
from fopru.cli.common import check_out, one_sentence

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
    weights: Annotated[
        list[str] | None,
        typer.Option(help="Of every method: none, mass, or both (given twice); none if not given."),
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
    with one_sentence():
        for name, value in (("new_tokens", new_tokens), ("turns", turns), ("text", text)):
            check_integer(name, value, minimum=1)
        batches, retentions = batch or [1], retention or [0.5, 0.25, 0.1]
        for size in batches:
            check_integer("batch", size, minimum=1)
        if out is not None:
            check_out(out, TABLE)
        from fopru.cli import measuring  # torch, which bad input need not wait for

        methods = measuring.methods(method or ["fopru"], weights or ["none"])
        pruners = measuring.pruners(methods, retentions)
        if dry_run:
            measuring.announce(shape or model, device, methods, retentions, batches)
            return
        results = measuring.results(
            shape, model, pruners, batches, text, new_tokens, turns, device, dtype, attention
        )
        if out is not None:
            measuring.add(results, out)
    measuring.show(results)
