"""Training-free visual-token pruning for Hugging Face vision-language models."""

from importlib.metadata import version

from fopru.checking import check
from fopru.efficiency import measure
from fopru.encoding import Encoded, EncodedImage, encode
from fopru.evaluation import evaluate
from fopru.families import UnsupportedModelError
from fopru.loading import load
from fopru.methods import CLS, FoPru, Random, Uniform
from fopru.pruned import PrunedImage, PrunedInputs
from fopru.pruner import METHODS, Pruner

__version__ = version("fopru")

__all__ = [
    "CLS",
    "METHODS",
    "Encoded",
    "EncodedImage",
    "FoPru",
    "PrunedImage",
    "PrunedInputs",
    "Pruner",
    "Random",
    "Uniform",
    "UnsupportedModelError",
    "check",
    "encode",
    "evaluate",
    "load",
    "measure",
]
