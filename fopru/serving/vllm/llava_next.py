"""LLaVA-NeXT in vLLM, pruned: a base view and the canvas of its tiles each keep their share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.llava import LlavaDummyInputsBuilder
from vllm.model_executor.models.llava_next import (
    LlavaNextForConditionalGeneration,
    LlavaNextMultiModalProcessor,
    LlavaNextProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from fopru.serving.vllm.llava import NAMES, Clip
from fopru.serving.vllm.processing import PrunedProcessor


class Processor(PrunedProcessor, LlavaNextMultiModalProcessor):
    """The processor of LLaVA-NeXT."""


class Tiled(Clip):
    """What LLaVA-NeXT and LLaVA-OneVision share: pictures that are cut into tiles."""

    def tiles(self, seen: Mapping[str, Any]) -> Tensor:
        """Return the places of the pictures' own tiles: those with fewer tiles than others of their
        request are filled up to as many."""
        counts = self.family.tile_counts(seen)
        filled = [len(tiles) for tiles in seen["pixel_values"]]
        own = [torch.arange(most) < count for count, most in zip(counts, filled, strict=True)]
        return torch.cat(own).nonzero().flatten()


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=LlavaNextProcessingInfo, dummy_inputs=LlavaDummyInputsBuilder
)
class PrunedLlavaNext(Tiled, LlavaNextForConditionalGeneration):
    """LLaVA-NeXT whose pictures keep their budget of visual tokens."""

    hf_to_vllm_mapper = LlavaNextForConditionalGeneration.hf_to_vllm_mapper | NAMES
