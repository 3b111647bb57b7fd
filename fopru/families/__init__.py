"""One small adapter per model family; importing this package registers them all."""

from fopru.families.aya_vision import AyaVision
from fopru.families.base import Family, UnsupportedModelError
from fopru.families.cohere2_vision import Cohere2Vision
from fopru.families.example import Example
from fopru.families.gemma3 import Gemma3
from fopru.families.gemma4 import Gemma4, Gemma4Unified
from fopru.families.generic import Generic
from fopru.families.glm4v import Glm4V
from fopru.families.grid import Grid, View
from fopru.families.idefics3 import Idefics3
from fopru.families.internvl import InternVL
from fopru.families.llava import Llava
from fopru.families.llava_next import LlavaNext
from fopru.families.llava_onevision import LlavaOnevision
from fopru.families.paligemma import PaliGemma
from fopru.families.pixtral import LightOnOcr, LlavaPixtral, Mistral3
from fopru.families.qwen2_5_vl import Qwen25VL
from fopru.families.qwen2_vl import Qwen2VL
from fopru.families.qwen3_5 import Qwen35
from fopru.families.qwen3_vl import Qwen3VL

__all__ = [
    "AyaVision",
    "Cohere2Vision",
    "Example",
    "Family",
    "Gemma3",
    "Gemma4",
    "Gemma4Unified",
    "Generic",
    "Glm4V",
    "Grid",
    "Idefics3",
    "InternVL",
    "LightOnOcr",
    "Llava",
    "LlavaNext",
    "LlavaOnevision",
    "LlavaPixtral",
    "Mistral3",
    "PaliGemma",
    "Qwen2VL",
    "Qwen3VL",
    "Qwen25VL",
    "Qwen35",
    "UnsupportedModelError",
    "View",
]
