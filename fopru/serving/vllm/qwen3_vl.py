"""Qwen3-VL in vLLM, pruned: as Qwen2.5-VL; features for its first layers go with their tokens.

vLLM has those beside the others, so that they are chosen at once.
"""

from __future__ import annotations

from vllm.model_executor.models.qwen3_vl import (
    Qwen3VLDummyInputsBuilder,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMultiModalProcessor,
    Qwen3VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from fopru.serving.vllm.processing import PicturesAlone, PrunedProcessor
from fopru.serving.vllm.qwen2_5_vl import Placed


class Info(PicturesAlone, Qwen3VLProcessingInfo):
    """The processing info of Qwen3-VL, without videos."""


class Processor(PrunedProcessor, Qwen3VLMultiModalProcessor):
    """The processor of Qwen3-VL."""


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=Info, dummy_inputs=Qwen3VLDummyInputsBuilder
)
class PrunedQwen3VL(Placed, Qwen3VLForConditionalGeneration):
    """Qwen3-VL whose pictures keep their budget of visual tokens."""

    channels = 5
