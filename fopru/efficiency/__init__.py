"""What pruning saves: time by stage, FLOPs, KV cache, memory, and the machine's limits."""

from fopru.efficiency.limits import Latency, Machine, roofline
from fopru.efficiency.measuring import measure
from fopru.efficiency.shapes import SHAPES, build, prompt

__all__ = ["SHAPES", "Latency", "Machine", "build", "measure", "prompt", "roofline"]
