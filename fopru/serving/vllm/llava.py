"""LLaVA-1.5 in vLLM, pruned: one square of patches, a CLIP or SigLIP tower."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn
from vllm.model_executor.models.llava import (
    LlavaDummyInputsBuilder,
    LlavaForConditionalGeneration,
    LlavaMultiModalProcessor,
    LlavaProcessingInfo,
)
from vllm.model_executor.models.utils import WeightsMapper
from vllm.multimodal import MULTIMODAL_REGISTRY

from fopru.serving.vllm.processing import PrunedProcessor
from fopru.serving.vllm.pruning import Pruned

NAMES = WeightsMapper(
    orig_to_new_regex={
        re.compile(r"^(model\.)?vision_tower\.(?!vision_model\.)"): "vision_tower.vision_model."
    }
)
"""Names of the tower's weights: transformers 5 saves them without the `vision_model.` that vLLM
wants."""


class Clip(Pruned):
    """What LLaVA-1.5 and LLaVA-NeXT share: a CLIP or SigLIP tower."""

    def attention_layers(self) -> Sequence[nn.Module]:
        return [block.self_attn for block in self.vision_tower.vision_model.encoder.layers]


class Processor(PrunedProcessor, LlavaMultiModalProcessor):
    """The processor of LLaVA-1.5."""


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=LlavaProcessingInfo, dummy_inputs=LlavaDummyInputsBuilder
)
class PrunedLlava(Clip, LlavaForConditionalGeneration):
    """LLaVA-1.5 whose pictures keep their budget of visual tokens."""

    hf_to_vllm_mapper = LlavaForConditionalGeneration.hf_to_vllm_mapper | NAMES
