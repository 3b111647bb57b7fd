"""Training-free visual-token pruning for Hugging Face vision-language models."""

from importlib.metadata import version

from fopru.encoding import Encoded, EncodedImage, encode
from fopru.families import UnsupportedModelError
from fopru.loading import load
from fopru.methods import FoPru, Random
from fopru.pruned import PrunedImage, PrunedInputs
from fopru.pruner import METHODS, Pruner

__version__ = version("fopru")

__all__ = [
    "METHODS",
    "Encoded",
    "EncodedImage",
    "FoPru",
    "PrunedImage",
    "PrunedInputs",
    "Pruner",
    "Random",
    "UnsupportedModelError",
    "encode",
    "load",
]
