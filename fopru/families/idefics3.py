"""Idefics3 and SmolVLM: tiles, each framed by text that says where it sits (arXiv 2408.12637,
2504.05299)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fopru.families.base import Family, Grid, View


class Idefics3(Family, model_types=("idefics3", "smolvlm")):
    title = "Idefics3, SmolVLM"
    notes = "each tile is a picture of its own, framed by text"
    options = ("pixel_attention_mask",)
    merges = True

    @property
    def tower(self) -> PreTrainedModel:
        return self.model.base_model.vision_model

    @property
    def decoder(self) -> PreTrainedModel:
        return self.model.base_model.text_model

    @property
    def projector(self) -> nn.Module:
        return self.model.base_model.connector

    @property
    def tile(self) -> Grid:
        """The tokens of one tile."""
        config = self.config.vision_config
        side = config.image_size // config.patch_size // self.config.scale_factor
        return Grid((View(side, side),))

    def grids(self, inputs: Mapping[str, Any]) -> list[Grid]:
        """`pixel_values` are padded with empty tiles: the placeholders say how many there are."""
        n_tokens = int((inputs["input_ids"] == self.image_token_id).sum())
        return [self.tile] * max(1, n_tokens // self.tile.n_tokens)

    def tokens(self, maps: list[Tensor], inputs: Mapping[str, Any]) -> list[Tensor]:
        tiles = torch.stack(maps)  # (tiles, P, c)
        shuffled = self.projector.pixel_shuffle(tiles, self.config.scale_factor)
        return list(shuffled.unflatten(2, (-1, tiles.shape[-1])).mean(2))  # (N, c) each
