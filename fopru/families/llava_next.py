"""LLaVA-NeXT: a base view, and the canvas of its tiles without the padding, a newline a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from fopru.families.grid import Grid, View
from fopru.families.llava import Llava


class LlavaNext(Llava, model_types=("llava_next",)):
    title = "LLaVA-NeXT"
    notes = "base view and tiles each keep their share; newline tokens follow their row"
    pixels = ("pixel_values", "image_sizes")

    def tile_counts(self, inputs: Mapping[str, Any]) -> list[int]:
        """Tiles of each picture, its base view included."""
        return [
            image_size_to_num_patches(
                size, self.config.image_grid_pinpoints, self.config.vision_config.image_size
            )
            for size in inputs["image_sizes"]
        ]

    def grids(self, inputs: Mapping[str, Any]) -> list[Grid]:
        self.check_rectangular()
        side = self.config.vision_config.image_size // self.config.vision_config.patch_size
        base = View(side, side)
        tiles = [torch.zeros(base.n_tokens, 1)] * sum(self.tile_counts(inputs))
        grids = []
        for packed in self.tokens(tiles, inputs):
            height = int(packed.isinf().sum())  # each row of the canvas ends with one newline
            views = [base]
            if height:  # unpadding leaves no row of a picture that is very long and thin
                width = (len(packed) - base.n_tokens) // height - 1
                views.append(View(height, width, newline=True))
            grids.append(Grid(tuple(views)))
        return grids

    def tokens(self, maps: list[Tensor], inputs: Mapping[str, Any]) -> list[Tensor]:
        tiles = torch.stack(maps)  # (tiles, patches, c)
        return list(self.packed(tiles.split(self.tile_counts(inputs)), inputs["image_sizes"]))

    def packed(self, pictures: tuple[Tensor, ...], sizes: Tensor) -> list[Tensor]:
        """The tiles of each picture, (tiles, patches, c), as its tokens, (N, c)."""
        packed, _ = self.model.base_model.pack_image_features(
            pictures,
            sizes,
            vision_feature_select_strategy=self.config.vision_feature_select_strategy,
            image_newline=pictures[0].new_full((pictures[0].shape[-1],), torch.inf),
        )
        return packed
