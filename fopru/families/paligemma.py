"""PaliGemma: one square of patches, and a prompt that sees itself both ways (arXiv 2407.07726)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import transformers as hf
from torch import Tensor

from fopru.families.base import Family
from fopru.families.example import IMAGE, SIDE, SQUARE, TEXT, VIT, Example
from fopru.families.grid import Grid, View


class PaliGemma(Family, model_types=("paligemma",)):
    title = "PaliGemma"
    notes = "PaliGemma and PaliGemma 2; the picture sees the question, too"
    counts_from = 1
    looks_back = False
    stacked = True

    @classmethod
    def example(cls, model_type: str) -> Example:
        images = hf.SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
        images.image_seq_length = 64
        return Example(
            hf.PaliGemmaConfig(
                vision_config=hf.SiglipVisionConfig(**VIT, **SQUARE, vision_use_head=False),
                text_config=hf.GemmaConfig(**TEXT, head_dim=12),
                image_token_index=IMAGE,
                projection_dim=TEXT["hidden_size"],
                hidden_size=TEXT["hidden_size"],
                vocab_size=TEXT["vocab_size"],
            ),
            images,
            kinds="token_type_ids",
            answered=1,
            named={"image_token": "<image>"},
        )

    def grids(self, inputs: Mapping[str, Any]) -> list[Grid]:
        side = self.config.vision_config.image_size // self.config.vision_config.patch_size
        return [Grid((View(side, side),))] * len(inputs["pixel_values"])

    def tokens(self, maps: list[Tensor], inputs: Mapping[str, Any]) -> list[Tensor]:
        return maps
