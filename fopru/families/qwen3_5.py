"""Qwen3.5: as Qwen2-VL, but most layers of the language model have linear attention (a gated delta
rule), whose cache is a state of fixed size in place of keys and values."""

from __future__ import annotations

import transformers as hf

from fopru.families.example import TEXT, Example
from fopru.families.qwen2_vl import ROPE, TOWER, Interpolating

KINDS = ["linear", "full", "full", "linear", "full", "linear", "full", "linear"]
"""The example's layers."""


class Qwen35(Interpolating, model_types=("qwen3_5", "qwen3_5_moe")):
    title = "Qwen3.5"
    notes = (
        "as Qwen2-VL; three of four layers have linear attention: weights, and the choices of "
        "methods inside the LLM, are made in the others"
    )
    also = ()

    @classmethod
    def example(cls, model_type: str) -> Example:
        vision = dict(**TOWER, hidden_size=32, intermediate_size=48, out_hidden_size=48)
        text = dict(
            **{**TEXT, "num_hidden_layers": 8},
            layer_types=[f"{kind}_attention" for kind in KINDS],
            head_dim=12,
            rope_parameters={**ROPE, "mrope_interleaved": True, "partial_rotary_factor": 1.0},
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
        )
        kind, twin = hf.Qwen3_5Config, model_type == "qwen3_5_moe"
        if twin:
            kind, width = hf.Qwen3_5MoeConfig, text.pop("intermediate_size") // 2
            text |= dict(moe_intermediate_size=width, shared_expert_intermediate_size=width)
            text |= dict(num_experts=4, num_experts_per_tok=2)
        vision |= dict(num_position_embeddings=64)
        return cls._example(kind, vision, text, frame="w3", twin=twin)


class Qwen35Video(Qwen35):
    modality = "video"
    pixels = ("pixel_values_videos", "video_grid_thw")


Qwen35.video = Qwen35Video
