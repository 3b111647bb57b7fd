"""`python data/making train`, `python data/making score`: in a checkout, with fopru installed."""

import sys
from importlib import import_module
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])
import_module("making.commands").app(prog_name="python data/making")
