"""GLM-4.1V, GLM-4.6V and GLM-OCR: as Qwen2-VL, four patches made one by a convolution
(arXiv 2507.01006)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import transformers as hf
from torch import Tensor

from fopru.families.example import END, IMAGE, PATCH, SIDE, START, TEXT, VIDEO, Example
from fopru.families.qwen2_vl import ROPE, TOWER, Qwen2VL


class Glm4V(Qwen2VL, model_types=("glm4v", "glm46v", "glm_ocr")):
    title = "GLM-4.1V, GLM-4.6V, GLM-OCR"
    notes = "as Qwen2-VL; the times between the frames of a video are text, and stay"
    also = ()

    @classmethod
    def example(cls, model_type: str) -> Example:
        config, images, processor = {
            "glm4v": (hf.Glm4vConfig, hf.Glm4vImageProcessorPil, "Glm4vProcessor"),
            "glm46v": (hf.Glm46VConfig, hf.Glm46VImageProcessorPil, "Glm46VProcessor"),
            "glm_ocr": (hf.GlmOcrConfig, hf.Glm46VImageProcessorPil, "Glm46VProcessor"),
        }[model_type]
        sizes = dict(hidden_size=32, intermediate_size=48, out_hidden_size=48, image_size=SIDE)
        names = ("<image>", "w53", "w54", "w51", "w52", "w55")
        tokens = ("image", "begin_of_image", "end_of_image", "begin_of_video", "end_of_video")
        return Example(
            config(
                vision_config={**TOWER, **sizes},
                text_config={**TEXT, "rope_parameters": ROPE},
                image_token_id=IMAGE,
                video_token_id=VIDEO,
                image_start_token_id=START,
                image_end_token_id=END,
            ),
            images(
                patch_size=PATCH,
                merge_size=2,
                size={"shortest_edge": 2 * 16 * 16, "longest_edge": 2 * 64 * 64},
            ),
            kinds="mm_token_type_ids",
            frame="w53",
            twin=model_type != "glm4v",
            special={w: f"<|{t}|>" for w, t in zip(names, (*tokens, "video"), strict=True)},
            picture="<|begin_of_image|><|image|><|end_of_image|>",
            video="<|begin_of_video|><|video|><|end_of_video|>",
            processor=processor,
        )

    def vision(self, seen: list[Tensor], inputs: Mapping[str, Any]) -> list[Tensor]:
        (tokens,) = seen  # the projector gets what the convolution made of four patches
        return list(tokens.split([grid.n_tokens for grid in self.grids(inputs)]))


class Glm4VVideo(Glm4V):
    """Each frame is announced by its time, and its placeholders are those of a picture."""

    modality = "video"
    pixels = ("pixel_values_videos", "video_grid_thw")

    @property
    def image_token_id(self) -> int:
        return self.config.image_token_id


Glm4V.video = Glm4VVideo
