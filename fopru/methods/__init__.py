"""One method, one dataclass, one file; importing this package registers them all."""

from fopru.methods.cls import CLS
from fopru.methods.fopru import FoPru, FoPruRow
from fopru.methods.random import Random
from fopru.methods.uniform import Uniform

__all__ = ["CLS", "FoPru", "FoPruRow", "Random", "Uniform"]
