"""Gemma 3: 256 tokens a picture, averages of patches that see each other both ways
(arXiv 2503.19786)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers as hf
from torch import Tensor

from fopru.families.base import Family
from fopru.families.example import END, IMAGE, SIDE, SQUARE, START, TEXT, VIT, Example
from fopru.families.grid import Grid, View


class Gemma3(Family, model_types=("gemma3",)):
    title = "Gemma 3"
    notes = "each crop of pan-and-scan is a picture of its own"
    merges = True
    stacked = True

    @classmethod
    def example(cls, model_type: str) -> Example:
        config = hf.Gemma3Config(
            vision_config=hf.SiglipVisionConfig(**VIT, **SQUARE, vision_use_head=False),
            text_config=hf.Gemma3TextConfig(**TEXT, head_dim=12, sliding_window=512),
            mm_tokens_per_image=16,
            image_token_index=IMAGE,
            boi_token_index=START,
            eoi_token_index=END,
        )

        def runs(found: dict[str, Any], rows: list) -> list[str]:
            del found["num_crops"]
            return [f"w53 {'<image> ' * 16}w54"] * len(found["pixel_values"])

        return Example(
            config,
            hf.Gemma3ImageProcessorPil(size={"height": SIDE, "width": SIDE}),
            runs=runs,
            nested=True,
            kinds="token_type_ids",
            special={
                "<image>": "<image_soft_token>",
                "w53": "<start_of_image>",
                "w54": "<end_of_image>",
            },
            named={
                "image_token": "<image_soft_token>",
                "boi_token": "<start_of_image>",
                "eoi_token": "<end_of_image>",
            },
            picture="<start_of_image>",
            settings=dict(image_seq_length=16),
        )

    def grids(self, inputs: Mapping[str, Any]) -> list[Grid]:
        side = self.projector.tokens_per_side
        return [Grid((View(side, side),))] * len(inputs["pixel_values"])

    def tokens(self, maps: list[Tensor], inputs: Mapping[str, Any]) -> list[Tensor]:
        tiles = torch.stack(maps)  # (tiles, P, c)
        side = self.projector.patches_per_image
        tables = tiles.transpose(1, 2).unflatten(2, (side, side))  # (tiles, c, H, W)
        return list(self.projector.avg_pool(tables).flatten(2).transpose(1, 2))  # (N, c) each
