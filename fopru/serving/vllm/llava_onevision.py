"""LLaVA-OneVision in vLLM, pruned: pictures alone, each view with its share."""

from __future__ import annotations

from typing import Any

from vllm.model_executor.models.llava_onevision import (
    LlavaOnevisionDummyInputsBuilder,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionMultiModalProcessor,
    LlavaOnevisionProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from fopru.families import UnsupportedModelError
from fopru.serving.vllm.llava import NAMES
from fopru.serving.vllm.llava_next import Tiled
from fopru.serving.vllm.processing import PicturesAlone, PrunedProcessor

RATIO = "anyres_max_9"
"""The one `vision_aspect_ratio` that vLLM packs tiles by, whatever the model's config says."""


class Info(PicturesAlone, LlavaOnevisionProcessingInfo):
    """The processing info of LLaVA-OneVision, without videos."""


class Processor(PrunedProcessor, LlavaOnevisionMultiModalProcessor):
    """The processor of LLaVA-OneVision."""


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=Info, dummy_inputs=LlavaOnevisionDummyInputsBuilder
)
class PrunedLlavaOnevision(Tiled, LlavaOnevisionForConditionalGeneration):
    """LLaVA-OneVision whose pictures keep their budget of visual tokens."""

    hf_to_vllm_mapper = LlavaOnevisionForConditionalGeneration.hf_to_vllm_mapper | NAMES

    def __init__(self, *, vllm_config: Any, prefix: str = ""):
        ratio = vllm_config.model_config.hf_config.vision_aspect_ratio
        if ratio != RATIO:
            raise UnsupportedModelError(
                f"fopru: vision_aspect_ratio={ratio!r}: vLLM packs the tiles of every "
                f"LLaVA-OneVision as {RATIO!r} does, so that this model's are not as it learned."
            )
        super().__init__(vllm_config=vllm_config, prefix=prefix)
