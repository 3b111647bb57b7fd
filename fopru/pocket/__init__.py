"""The embedded model's scenes and benchmark. How it is made: `data/making` in a checkout."""

from fopru.pocket.pocketbench import benchmark
from fopru.pocket.results import results
from fopru.pocket.sampling import folder, sample

__all__ = ["benchmark", "folder", "results", "sample"]
