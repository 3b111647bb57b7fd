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


class Llava(Family, model_types=("llava",)):
    title = "LLaVA-1.5"
    notes = "CLIP or SigLIP tower"

    @classmethod
    def example(cls, model_type: str) -> Example:
        parts = dict(
            vision_config=hf.CLIPVisionConfig(**VIT, **SQUARE, projection_dim=16),
            text_config=hf.LlamaConfig(**TEXT),
            image_token_index=IMAGE,
        )
        size = dict(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
        if model_type == "llava":
            config, images = hf.LlavaConfig(**parts), hf.CLIPImageProcessorPil(**size)
        else:
            config = hf.LlavaNextConfig(**parts, image_grid_pinpoints=PINPOINTS)
            images = hf.LlavaNextImageProcessorPil(**size, image_grid_pinpoints=PINPOINTS)
        settings = dict(
            patch_size=PATCH,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        )
        return Example(config, images, named={"image_token": "<image>"}, settings=settings)

    def __init__(self, model: PreTrainedModel):
        super().__init__(model)
        if self.config.vision_config.model_type == "pixtral":
            raise UnsupportedModelError(
                f"a Pixtral tower packs pictures of all sizes into one sequence, and {self.title} "
                "cuts them into tiles of one size: there is no adapter for the two together."
            )

    def check_rectangular(self) -> None:
        """Raises UnsupportedModelError where the CLS token stays among the visual tokens."""
        strategy = self.config.vision_feature_select_strategy
        if strategy != "default" and self.n_prefix:
            raise UnsupportedModelError(
                f"vision_feature_select_strategy={strategy!r} keeps the CLS token among the visual "
                "tokens, which then are no rectangular grid; 'default' drops it."
            )

    def grids(self, inputs: Mapping[str, Any]) -> list[Grid]:
        self.check_rectangular()
        n_images, _, height, width = inputs["pixel_values"].shape
        patch = self.config.vision_config.patch_size
        return [Grid((View(height // patch, width // patch),))] * n_images

    def tokens(self, maps: list[Tensor], inputs: Mapping[str, Any]) -> list[Tensor]:
        return maps
