"""What `fopru evaluate --server` does beside asking: its options, and what it prints."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import typer
from rich import box
from rich.console import Console
from rich.table import Column, Table

from fopru.cli.common import percent

if TYPE_CHECKING:
    import pandas as pd

BOTH = {"tasks", "out", "model", "retention", "limit", "split", "max_new_tokens"}
"""Parameters that mean the same with a model that is loaded here and with a server."""

OURS = {"server", "concurrency", "timeout", "add_special_tokens", "key_from"}
"""Parameters of servers alone; all others are of a model that is loaded here."""


def check_parameters(context: typer.Context) -> None:
    """Refuse options that say nothing to the way that is asked.

    Raises:
        ValueError: An option of servers without --server, or one of a loaded model with it.
    """
    server = context.params["server"] is not None
    for name in context.params:
        given = context.get_parameter_source(name).name == "COMMANDLINE"
        if not given or name in BOTH or (name in OURS) == server:
            continue
        option = f"--{name.replace('_', '-')}"
        raise ValueError(
            f"{option} is not for --server: the method and its options are the engine's."
            if server
            else f"{option} is for --server, which is not given."
        )


def key(variable: str | None) -> str | None:
    """Return the server's key from the environment, so that it stands in no command line.

    Raises:
        ValueError: There is no such variable.
    """
    if variable is None:
        return None
    if not os.environ.get(variable):
        raise ValueError(f"--key-from {variable}: this environment variable is not set.")
    return os.environ[variable]


def show(results: pd.DataFrame) -> None:
    """Print a line for each task and retention: what is said, and how long it takes."""
    from fopru.evaluation import rows, statistics

    keys = ["task", "retention"]
    answered = rows.answered(results).groupby(keys, sort=False, dropna=False)
    judged = statistics.scores(results).groupby(keys, sort=False, dropna=False)
    said = statistics.accuracy(results).groupby(keys, sort=False, dropna=False)
    names = ("task", "retention", "prompt", "said", "own metric", "p50", "p95")
    lines = Table(*(Column(name, no_wrap=True) for name in names), box=box.SIMPLE)
    lines.title = "percent, 95 % intervals over pictures; p50 and p95 in seconds"
    for (key, part), (_, scores), (_, cell) in zip(answered, judged, said, strict=True):
        task, share = key
        seconds = (f"{part.seconds.quantile(q):.3f}" for q in (0.5, 0.95))
        prompt = part.prompt_tokens.mean()
        lines.add_row(
            task,
            "as it is" if share != share else f"{share:g}",
            "-" if prompt != prompt else f"{prompt:.0f}",
            percent(cell),
            "\n".join(f"{s.metric} {100 * s.score:.1f}" for s in scores.itertuples()),
            *seconds,
        )
    Console(file=sys.stdout).print(lines)
