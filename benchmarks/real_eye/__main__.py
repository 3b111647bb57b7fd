"""`python benchmarks/real_eye`: fetch, look, train, ask; in a checkout, with fopru installed."""

import sys
from importlib import import_module
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])
import_module("real_eye.commands").app(prog_name="python benchmarks/real_eye")
