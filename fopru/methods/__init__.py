"""One method, one dataclass, one file; importing this package registers them all."""

from fopru.methods.cls import CLS
from fopru.methods.cluster_mean import ClusterMean
from fopru.methods.compose import Compose, Holds, Share
from fopru.methods.dart import DART
from fopru.methods.divprune import DivPrune
from fopru.methods.dpp import DPP, CDPruner
from fopru.methods.evs import EVS
from fopru.methods.fastv import FastV
from fopru.methods.fopru import FoPru, FoPruRow
from fopru.methods.hiprune import HiPrune
from fopru.methods.holov import HoloV
from fopru.methods.mmtok import MMTok
from fopru.methods.picks import MMR, Cells, Halves, MaxMin, Pick, Top
from fopru.methods.pixelprune import PixelPrune
from fopru.methods.pool import Pool
from fopru.methods.prumerge import PruMerge, PruMergePlus
from fopru.methods.prunesid import PruneSID
from fopru.methods.pyramiddrop import PyramidDrop
from fopru.methods.random import Random
from fopru.methods.scope import SCOPE
from fopru.methods.sparsevlm import SparseVLM
from fopru.methods.tome import ToMe
from fopru.methods.uniform import Uniform
from fopru.methods.visionzip import VisionZip
from fopru.methods.vispruner import VisPruner
from fopru.methods.vscan import VScan
from fopru.pruner import METHODS

__all__ = [
    "CLS",
    "DART",
    "DPP",
    "EVS",
    "METHODS",
    "MMR",
    "SCOPE",
    "CDPruner",
    "Cells",
    "ClusterMean",
    "Compose",
    "DivPrune",
    "FastV",
    "FoPru",
    "FoPruRow",
    "Halves",
    "HiPrune",
    "Holds",
    "HoloV",
    "MMTok",
    "MaxMin",
    "Pick",
    "PixelPrune",
    "Pool",
    "PruMerge",
    "PruMergePlus",
    "PruneSID",
    "PyramidDrop",
    "Random",
    "Share",
    "SparseVLM",
    "ToMe",
    "Top",
    "Uniform",
    "VScan",
    "VisPruner",
    "VisionZip",
]
