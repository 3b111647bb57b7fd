"""One small adapter per model family; importing this package registers them all."""

from fopru.families.base import Family, Grid, UnsupportedModelError, View
from fopru.families.llava import Llava
from fopru.families.llava_next import LlavaNext

__all__ = ["Family", "Grid", "Llava", "LlavaNext", "UnsupportedModelError", "View"]
