"""One method, one dataclass, one file; importing this package registers them all."""

from fopru.methods.fopru import FoPru, FoPruRow
from fopru.methods.random import Random

__all__ = ["FoPru", "FoPruRow", "Random"]
