"""Training-free visual-token pruning for Hugging Face vision-language models.

What stands here is imported when it is first used, since torch and transformers take seconds.
"""

from importlib import import_module
from importlib.metadata import version
from pkgutil import iter_modules
from typing import Any

__version__ = version("fopru")

_NAMES = {
    "adaptive": ("Adaptive", "calibrate"),
    "checking": ("check",),
    "efficiency": ("measure",),
    "encoding": ("Encoded", "EncodedImage", "encode"),
    "evaluation": ("evaluate",),
    "families": ("UnsupportedModelError",),
    "loading": ("load",),
    "methods": ("METHODS",),
    "pruned": ("PrunedImage", "PrunedInputs"),
    "pruner": ("Pruner",),
    "videos": ("Video",),
}
"""Each module -> the names of this package that it defines. All that `fopru.methods` exports is a
name of this package too."""

_HOMES = {name: module for module, names in _NAMES.items() for name in names}


def _methods() -> list[str]:
    return import_module("fopru.methods").__all__


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(f"fopru.{_HOMES[name]}"), name)
    elif name in {module.name for module in iter_modules(__path__)}:
        value = import_module(f"fopru.{name}")
    elif name == "__all__":
        value = sorted({*_HOMES, *_methods()})
    elif not name.startswith("_") and name in _methods():
        value = getattr(import_module("fopru.methods"), name)
    else:
        raise AttributeError(f"module 'fopru' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    modules = (module.name for module in iter_modules(__path__))
    return sorted({*globals(), *_HOMES, *_methods(), *modules})
