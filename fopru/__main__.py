"""`python -m fopru`: the command line."""

from fopru.cli import app

app(prog_name="fopru")
