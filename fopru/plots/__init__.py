"""Figures: data in, matplotlib Axes out."""

from fopru.plots.numbers import break_even, curves, gaps, readings, stages, training
from fopru.plots.pictures import overlay, significance
from fopru.plots.style import LOOKS, PALETTE, look, show, theme

__all__ = [
    "LOOKS",
    "PALETTE",
    "break_even",
    "curves",
    "gaps",
    "look",
    "overlay",
    "readings",
    "show",
    "significance",
    "stages",
    "theme",
    "training",
]
