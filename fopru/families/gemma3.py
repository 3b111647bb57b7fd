"""Gemma 3: 256 tokens a picture, averages of patches that see each other both ways
(arXiv 2503.19786)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput

from fopru.families.base import Family, Grid, View, in_one


class Gemma3(Family, model_types=("gemma3",)):
    title = "Gemma 3"
    notes = "each crop of pan-and-scan is a picture of its own"
    merges = True

    def grids(self, inputs: Mapping[str, Any]) -> list[Grid]:
        side = self.projector.tokens_per_side
        return [Grid((View(side, side),))] * len(inputs["pixel_values"])

    def tokens(self, maps: list[Tensor], inputs: Mapping[str, Any]) -> list[Tensor]:
        tiles = torch.stack(maps)  # (tiles, P, c)
        side = self.projector.patches_per_image
        tables = tiles.transpose(1, 2).unflatten(2, (side, side))  # (tiles, c, H, W)
        return list(self.projector.avg_pool(tables).flatten(2).transpose(1, 2))  # (N, c) each

    def encoder_outputs(self, features: list[Tensor]) -> dict[str, ModelOutput]:
        return {self.modality: BaseModelOutputWithPooling(pooler_output=in_one(features))}
