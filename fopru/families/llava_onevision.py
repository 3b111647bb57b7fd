"""LLaVA-OneVision: SigLIP, no CLS token; tiles as in LLaVA-NeXT, at most nine tiles' worth of
tokens (arXiv 2408.03326)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers as hf
from torch import Tensor
from transformers.models.llava_onevision.modeling_llava_onevision import image_size_to_num_patches

from fopru.families.base import Family
from fopru.families.example import IMAGE, PINPOINTS, SIDE, SQUARE, TEXT, VIDEO, VIT, Example
from fopru.families.grid import Grid, View
from fopru.families.llava_next import LlavaNext


class LlavaOnevisionVideo(Family):
    """Frames pooled to a quarter, each with its own budget; one newline ends the video."""

    title = "LLaVA-OneVision"
    modality = "video"
    stacked = True
    pixels = ("pixel_values_videos",)

    def grids(self, inputs: Mapping[str, Any]) -> list[Grid]:
        n_videos, n_frames, _, height, width = inputs["pixel_values_videos"].shape
        patch = 2 * self.config.vision_config.patch_size
        frame = View(-(-height // patch), -(-width // patch))
        newline = View(1, 0, newline=True)
        return [Grid((*[frame] * n_frames, newline), video=True)] * n_videos

    def tokens(self, maps: list[Tensor], inputs: Mapping[str, Any]) -> list[Tensor]:
        pooled = self.model.base_model.apply_pooling(torch.stack(maps))  # (frames, P / 4, c)
        newline = pooled.new_full((1, pooled.shape[-1]), torch.inf)
        videos = pooled.split(inputs["pixel_values_videos"].shape[1])
        return [torch.cat([video.flatten(0, 1), newline]) for video in videos]


class LlavaOnevision(LlavaNext, model_types=("llava_onevision",)):
    title = "LLaVA-OneVision"
    notes = "as LLaVA-NeXT; videos keep their share of every frame"
    video = LlavaOnevisionVideo
    options = ("batch_num_images",)

    @classmethod
    def example(cls, model_type: str) -> Example:
        config = hf.LlavaOnevisionConfig(
            vision_config=hf.SiglipVisionConfig(**VIT, **SQUARE),
            text_config=hf.Qwen2Config(**TEXT),
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            image_grid_pinpoints=PINPOINTS,
            vision_aspect_ratio="anyres_max_2",
        )
        size = {"height": SIDE, "width": SIDE}
        settings = dict(
            num_image_tokens=64,
            vision_feature_select_strategy="full",
            vision_aspect_ratio="anyres_max_2",
        )
        return Example(
            config,
            hf.LlavaOnevisionImageProcessorPil(size=size, image_grid_pinpoints=PINPOINTS),
            nested=True,
            special={"w55": "<video>"},
            settings=settings,
        )

    def tile_counts(self, inputs: Mapping[str, Any]) -> list[int]:
        counts = inputs.get("batch_num_images")
        sizes = inputs["image_sizes"]
        tiled = (
            [True] * len(sizes) if counts is None else [n == 1 for n in counts for _ in range(n)]
        )
        config = self.config
        return [
            image_size_to_num_patches(
                size, config.image_grid_pinpoints, config.vision_config.image_size
            )
            if several
            else 1  # pictures that share a prompt are not tiled
            for size, several in zip(sizes, tiled, strict=True)
        ]

    def packed(self, pictures: tuple[Tensor, ...], sizes: Tensor) -> list[Tensor]:
        packed, _ = self.model.base_model.pack_image_features(
            pictures,
            sizes,
            image_newline=pictures[0].new_full((pictures[0].shape[-1],), torch.inf),
            vision_aspect_ratio=self.config.vision_aspect_ratio,
        )
        return packed
