"""The command line: `fopru ask`, `fopru evaluate`, `fopru measure` and `fopru pocket`."""

import typer

from fopru.cli import pocket
from fopru.cli.ask import ask
from fopru.cli.evaluate import evaluate
from fopru.cli.measure import measure

app = typer.Typer(
    no_args_is_help=True,
    help="Visual-token pruning for vision-language models.",
    pretty_exceptions_enable=False,
)
app.command()(ask)
app.command()(evaluate)
app.command()(measure)
app.add_typer(pocket.app, name="pocket")
