"""Qwen3.5: as Qwen2-VL, but most layers of the language model have linear attention (gated delta
rule), which keeps a state of fixed size and no keys and values."""

from __future__ import annotations

from fopru.families.qwen2_vl import Qwen2VL


class Qwen35(Qwen2VL, model_types=("qwen3_5", "qwen3_5_moe")):
    title = "Qwen3.5"
    notes = (
        "as Qwen2-VL; three of four layers have linear attention: weights, and methods inside the "
        "LLM, act at the others"
    )
    also = ()


class Qwen35Video(Qwen35):
    modality = "video"
    pixels = ("pixel_values_videos", "video_grid_thw")


Qwen35.video = Qwen35Video
