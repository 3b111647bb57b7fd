"""LLaVA-1.5: one picture, one square of patches (arXiv 2310.03744)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import transformers as hf
from torch import Tensor
from transformers import PreTrainedModel

from fopru.families.base import Family, UnsupportedModelError
from fopru.families.example import IMAGE, PATCH, PINPOINTS, SIDE, SQUARE, TEXT, VIT, Example
from fopru.families.grid import Grid, View


class Llava(Family, model_types=("llava", "llava/dinov2")):
    title = "LLaVA-1.5"
    notes = "CLIP, SigLIP or DINOv2 tower"

    @classmethod
    def example(cls, model_type: str) -> Example:
        parts = dict(
            vision_config=hf.CLIPVisionConfig(**VIT, **SQUARE, projection_dim=16),
            text_config=hf.LlamaConfig(**TEXT),
            image_token_index=IMAGE,
        )
        size = dict(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
        if model_type == "llava_next":
            config = hf.LlavaNextConfig(**parts, image_grid_pinpoints=PINPOINTS)
            images = hf.LlavaNextImageProcessorPil(**size, image_grid_pinpoints=PINPOINTS)
        else:
            config, images = hf.LlavaConfig(**parts), hf.CLIPImageProcessorPil(**size)
        if model_type == "llava/dinov2":
            config.vision_config = hf.Dinov2Config(
                **VIT, **SQUARE, mlp_ratio=2, layerscale_value=0.5
            )
        settings = dict(
            patch_size=PATCH,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        )
        twin = model_type == "llava/dinov2"
        named = {"image_token": "<image>"}
        return Example(config, images, named=named, settings=settings, twin=twin)

    def __init__(self, model: PreTrainedModel):
        super().__init__(model)
        if self.config.vision_config.model_type == "pixtral":
            raise UnsupportedModelError(
                f"a Pixtral tower packs pictures of all sizes into one sequence, and {self.title} "
                "cuts them into tiles of one size: there is no adapter for the two together."
            )

    def check_rectangular(self) -> None:
        """Raises UnsupportedModelError where tokens that are no patches stay among the visual
        tokens: CLS, or registers, of which transformers cuts none off."""
        strategy = self.config.vision_feature_select_strategy
        if strategy != "default" and self.n_prefix:
            raise UnsupportedModelError(
                f"vision_feature_select_strategy={strategy!r} keeps the CLS token among the visual "
                "tokens, which then are no rectangular grid; 'default' drops it."
            )
        if self.n_prefix > 1:
            raise UnsupportedModelError(
                f"{type(self.tower).__name__} puts {self.n_prefix} tokens before the patches, and "
                f"{type(self.model).__name__} drops the first alone: its registers stay among the "
                "visual tokens, which then are no rectangular grid."
            )

    def grids(self, inputs: Mapping[str, Any]) -> list[Grid]:
        self.check_rectangular()
        n_images, _, height, width = inputs["pixel_values"].shape
        patch = self.config.vision_config.patch_size
        return [Grid((View(height // patch, width // patch),))] * n_images

    def tokens(self, maps: list[Tensor], inputs: Mapping[str, Any]) -> list[Tensor]:
        return maps
