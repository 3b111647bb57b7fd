"""Qwen3-VL: as Qwen2-VL, and the first layers of the language model get features of their own."""

from __future__ import annotations

import torch
import transformers as hf
from torch import Tensor
from transformers.modeling_outputs import ModelOutput
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from fopru.families.example import TEXT, Example
from fopru.families.qwen2_vl import ROPE, TOWER, Interpolating


class Qwen3VL(Interpolating, model_types=("qwen3_vl", "qwen3_vl_moe")):
    title = "Qwen3-VL"
    notes = "as Qwen2-VL; the features for its first layers go with their tokens"
    also = ()

    @classmethod
    def example(cls, model_type: str) -> Example:
        vision = dict(**TOWER, hidden_size=32, intermediate_size=48, out_hidden_size=48)
        vision |= dict(num_position_embeddings=64, deepstack_visual_indexes=[0, 2])
        rope = {**ROPE, "mrope_interleaved": True}
        text = {**TEXT, "num_hidden_layers": 9, "head_dim": 12, "rope_parameters": rope}
        kind, twin = hf.Qwen3VLConfig, model_type == "qwen3_vl_moe"
        if twin:
            kind = hf.Qwen3VLMoeConfig
            text |= dict(moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2)
        return cls._example(kind, vision, text, frame="w3", twin=twin)

    @property
    def n_deep(self) -> int:
        return len(self.config.vision_config.deepstack_visual_indexes)

    def deep(self, output: ModelOutput, sizes: list[int]) -> list[Tensor | None]:
        layers = [
            layer if isinstance(layer, Tensor) else torch.cat(list(layer))  # (K, d)
            for layer in output.deepstack_features
        ]
        return list(torch.cat(layers, 1).split(sizes))  # (N, layers * d) per picture

    def encoder_outputs(self, features: list[Tensor]) -> dict[str, ModelOutput]:
        width = self.config.get_text_config().hidden_size
        parts = [table.split(width, 1) for table in features]  # (k, d) each: tokens, then layers
        tokens, *layers = (list(part) for part in zip(*parts, strict=True))
        output = BaseModelOutputWithDeepstackFeatures(
            pooler_output=tokens, deepstack_features=layers
        )
        return {self.modality: output}


class Qwen3VLVideo(Qwen3VL):
    modality = "video"
    pixels = ("pixel_values_videos", "video_grid_thw")


Qwen3VL.video = Qwen3VLVideo
