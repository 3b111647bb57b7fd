"""Command A Vision: tiles and then a thumbnail, four patches a token, each followed by a mark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers as hf
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.image_processing_utils import BaseImageProcessor

from fopru.families.base import Family
from fopru.families.example import IMAGE, PATCH, SIDE, SQUARE, TEXT, VIT, Example
from fopru.families.grid import Grid, View


class Cohere2Vision(Family, model_types=("cohere2_vision",)):
    title = "Command A Vision"
    notes = "each tile is a picture of its own, parted by text"
    merges = True
    stacked = True

    @classmethod
    def example(cls, model_type: str) -> Example:
        return Example(
            hf.Cohere2VisionConfig(
                **towers(), image_token_id=IMAGE, alignment_intermediate_size=64
            ),
            cut(),
            runs=lambda found, rows: [
                f"w53 {f'{TILE} w52 ' * int(n)}w54" for n in found.pop("num_patches")
            ],
            nested=True,
            twin=True,
            special={
                "w52": "<|IMG_LINE_BREAK|>",
                "w53": "<|START_OF_IMG|>",
                "w54": "<|END_OF_IMG|>",
            },
            named={
                "image_token": "<image>",
                "boi_token": "<|START_OF_IMG|>",
                "eoi_token": "<|END_OF_IMG|>",
                "img_line_break_token": "<|IMG_LINE_BREAK|>",
            },
        )

    @property
    def tile(self) -> View:
        """The tokens of one tile."""
        config = self.config.vision_config
        side = config.image_size // config.patch_size // self.config.downsample_factor
        return View(side, side)

    def grids(self, inputs: Mapping[str, Any]) -> list[Grid]:
        return [Grid((self.tile,))] * len(inputs["pixel_values"])

    def tokens(self, maps: list[Tensor], inputs: Mapping[str, Any]) -> list[Tensor]:
        tiles = torch.stack(maps)  # (tiles, P, c)
        shuffled = self.projector.pixel_shuffle(tiles).flatten(1, 2)  # (tiles, N, P / N * c)
        return list(shuffled.unflatten(2, (-1, tiles.shape[-1])).mean(2))  # (N, c) each


TILE = " ".join(["<image>"] * 16)


def towers() -> dict[str, PreTrainedConfig]:
    """The two halves of a tiny model."""
    return dict(
        vision_config=hf.SiglipVisionConfig(**VIT, **SQUARE, vision_use_head=False),
        text_config=hf.Cohere2Config(**TEXT, sliding_window=512),
    )


def cut() -> BaseImageProcessor:
    """What cuts pictures into tiles; the processor counts the tokens of one by `patch_size`."""
    images = hf.GotOcr2ImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, crop_to_patches=True, max_patches=4
    )
    images.patch_size = PATCH
    return images
