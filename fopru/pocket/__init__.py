"""The embedded model: its scenes and benchmark, what it is made of, and how it is trained."""

from fopru.pocket.pocketbench import benchmark
from fopru.pocket.sampling import folder, sample

__all__ = ["benchmark", "folder", "sample"]
