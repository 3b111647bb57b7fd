"""`fopru serve-check`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fopru.arguments import check_integer
from fopru.cli.common import device_of, one_sentence
from fopru.pictures import load_image

if TYPE_CHECKING:
    from fopru.cli.comparing import Compared

BUDGETS = (1.0, 0.5, 0.25)


def serve_check(
    model: Annotated[str, typer.Argument(help="pocket, a Hugging Face id, or a folder.")],
    pictures: Annotated[list[Path], typer.Argument(help="Picture files, or folders of them.")],
    method: Annotated[str, typer.Option(help="A name in fopru.METHODS.")] = "fopru",
    retention: Annotated[
        list[float] | None, typer.Option(help="Once per share kept; 1.0, 0.5, 0.25 if none.")
    ] = None,
    question: Annotated[
        str, typer.Option(help="What is asked about each picture.")
    ] = "What is in this picture?",
    n: Annotated[int, typer.Option(min=1, help="Pictures at most.")] = 50,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 16,
    dtype: Annotated[
        str, typer.Option(help="Of the weights; in float32 nothing may differ.")
    ] = "float32",
    device: Annotated[
        str | None, typer.Option(help="Of transformers; a GPU of CUDA if there is one.")
    ] = None,
) -> None:
    """Whether vLLM prunes your model as transformers does, on your pictures."""
    with one_sentence():
        from fopru.cli import comparing  # and torch, which help need not wait for

        check_integer("n", n, minimum=1)
        shown = {str(path): load_image(path) for path in comparing.pictures_of(pictures, n)}
        budgets = [{"retention": share} for share in retention or BUDGETS]
        settings = {"method": method, **budgets[-1]}
        place = device_of(device)
        rows = comparing.compare(
            model, shown, settings, budgets, question, max_new_tokens, dtype, place
        )
    if not _show(rows, budgets):
        raise typer.Exit(1)


def _show(rows: list[Compared], budgets: list[dict[str, float]]) -> bool:
    """Print how much is equal at each budget, and what is not; return whether everything is."""
    table = Table("retention", "tokens", "same tokens kept", "least shared", "same answers")
    for budget in budgets:
        part = [row for row in rows if row.budget == budget]
        tokens = sorted({len(row.expected.kept) for row in part})
        kept = sum(row.expected.kept == row.found.kept for row in part)
        said = sum(row.expected.answer == row.found.answer for row in part)
        table.add_row(
            f"{budget['retention']:g}",
            str(tokens[0]) if len(tokens) == 1 else f"{tokens[0]} to {tokens[-1]}",
            f"{kept} of {len(part)}",
            f"{min(row.shared for row in part):.0%}",
            f"{said} of {len(part)}",
        )
    console = Console(file=sys.stdout)
    console.print(table)
    for row in rows:
        if row.expected.answer != row.found.answer:
            console.print(
                Text(
                    f"{row.picture} at {row.budget['retention']:g}: transformers says "
                    f"{row.expected.answer!r}, vLLM {row.found.answer!r}"
                )
            )
    return all(row.expected == row.found for row in rows)
