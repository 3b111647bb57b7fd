"""What pruning saves: time by stage, FLOPs, KV cache, memory, and the machine's limits."""

from fopru.efficiency.limits import Latency, Machine, roofline
from fopru.efficiency.measuring import STAGES, measure
from fopru.efficiency.shapes import SHAPES, build, empty, memory, prompt

__all__ = [
    "SHAPES",
    "STAGES",
    "Latency",
    "Machine",
    "build",
    "empty",
    "measure",
    "memory",
    "prompt",
    "roofline",
]
