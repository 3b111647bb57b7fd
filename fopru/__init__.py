"""Training-free visual-token pruning for Hugging Face vision-language models.

What stands here is imported when it is first used, since torch and transformers take seconds.
"""

from importlib import import_module
from importlib.metadata import version
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what editors and type checkers read
    from fopru.adaptive import Adaptive as Adaptive
    from fopru.adaptive import calibrate as calibrate
    from fopru.checking import check as check
    from fopru.efficiency import measure as measure
    from fopru.encoding import Encoded as Encoded
    from fopru.encoding import EncodedImage as EncodedImage
    from fopru.encoding import encode as encode
    from fopru.evaluation import evaluate as evaluate
    from fopru.evaluation import evaluate_server as evaluate_server
    from fopru.evaluation import prepare as prepare
    from fopru.families import UnsupportedModelError as UnsupportedModelError
    from fopru.loading import load as load
    from fopru.methods import *  # noqa: F403
    from fopru.pruned import PrunedImage as PrunedImage
    from fopru.pruned import PrunedInputs as PrunedInputs
    from fopru.pruner import Pruner as Pruner
    from fopru.videos import Video as Video

__version__ = version("fopru")

_NAMES = {
    "adaptive": ("Adaptive", "calibrate"),
    "checking": ("check",),
    "efficiency": ("measure",),
    "encoding": ("Encoded", "EncodedImage", "encode"),
    "evaluation": ("evaluate", "evaluate_server", "prepare"),
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


def _modules() -> list[str]:
    return [module.name for module in iter_modules(__path__)]  # noqa: F405


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(f"fopru.{_HOMES[name]}"), name)
    elif name in _modules():
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
    return sorted({*globals(), *_HOMES, *_methods(), *_modules()})
