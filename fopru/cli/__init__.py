"""The command line: `fopru ask`, `evaluate`, `measure`, `pocket` and `serve-check`.

A command's module, and torch with it, is imported when the command runs: help and a mistyped name
answer at once.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

import fopru

COMMANDS = {
    "ask": "Ask with all visual tokens and with the kept ones: answers, token counts, times.",
    "evaluate": "Accuracy against retention, with intervals, beside the full model.",
    "measure": "What pruning saves: seconds of each stage, beside the model as it is.",
    "pocket": "The embedded pocket model.",
    "serve-check": "Whether vLLM prunes your model as transformers does, on your pictures.",
}
"""The module of each command in this package -> what `fopru --help` says of it."""


class Deferred(TyperCommand):
    """Stands for a command whose module is imported when the command runs."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Import the command's module, and let the command parse its arguments."""
        name = self.name.replace("-", "_")
        module = import_module(f"fopru.cli.{name}")
        app = getattr(module, "app", None)
        if app is None:
            app = typer.Typer(add_completion=False)
            app.command()(getattr(module, name))
        return typer.main.get_command(app).make_context(*args, **kwargs)


class Commands(TyperGroup):
    """The group of all commands, none of which is imported yet."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.commands = {name: Deferred(name, help=text) for name, text in COMMANDS.items()}


app = typer.Typer(cls=Commands, no_args_is_help=True, pretty_exceptions_enable=False)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fopru {fopru.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    """Visual-token pruning for vision-language models."""
    for stream in (sys.stdout, sys.stderr):  # an answer may hold letters that a console lacks
        stream.reconfigure(errors="replace")
