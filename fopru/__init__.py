"""Training-free visual-token pruning for Hugging Face vision-language models.

What stands here is imported when it is first used, since torch and transformers take seconds.
"""

from importlib import import_module
from importlib.metadata import version
from pkgutil import iter_modules
from typing import Any

__version__ = version("fopru")

_NAMES = {
    "checking": ("check",),
    "efficiency": ("measure",),
    "encoding": ("Encoded", "EncodedImage", "encode"),
    "evaluation": ("evaluate",),
    "families": ("UnsupportedModelError",),
    "loading": ("load",),
    "methods": (
        "CLS",
        "DART",
        "DPP",
        "EVS",
        "METHODS",
        "SCOPE",
        "CDPruner",
        "DivPrune",
        "FastV",
        "FoPru",
        "FoPruRow",
        "HiPrune",
        "HoloV",
        "MMTok",
        "Pool",
        "PruMerge",
        "PruMergePlus",
        "PruneSID",
        "PyramidDrop",
        "Random",
        "ToMe",
        "Uniform",
        "VScan",
        "VisPruner",
        "VisionZip",
    ),
    "pruned": ("PrunedImage", "PrunedInputs"),
    "pruner": ("Pruner",),
    "videos": ("Video",),
}
"""Module -> the names of this package that it defines."""

_HOMES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(f"fopru.{_HOMES[name]}"), name)
    elif name in {module.name for module in iter_modules(__path__)}:
        value = import_module(f"fopru.{name}")
    else:
        raise AttributeError(f"module 'fopru' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *(module.name for module in iter_modules(__path__))})
