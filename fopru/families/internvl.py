"""InternVL: tiles and then a thumbnail, four patches a token (arXiv 2504.10479)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers as hf
from torch import Tensor

from fopru.families.example import IMAGE, PATCH, SIDE, TEXT, VIT, Example
from fopru.families.grid import Grid, View, runs
from fopru.families.llava import Llava


class InternVL(Llava, model_types=("internvl",)):
    title = "InternVL"
    notes = "each tile keeps its share; the thumbnail is the last view"
    merges = True
    stacked = True

    @classmethod
    def example(cls, model_type: str) -> Example:
        vision = hf.InternVLVisionConfig(
            **VIT, image_size=[SIDE, SIDE], patch_size=[PATCH, PATCH], use_qk_norm=True
        )
        size = {"height": SIDE, "width": SIDE}
        names = dict(context="<IMG_CONTEXT>", start="<img>", end="</img>")
        return Example(
            hf.InternVLConfig(
                vision_config=vision,
                text_config=hf.Qwen2Config(**TEXT),
                image_seq_length=16,
                image_token_id=IMAGE,
            ),
            hf.GotOcr2ImageProcessorPil(size=size, crop_to_patches=True, max_patches=4),
            runs=lambda found, rows: [
                f"w53 {'<image> ' * (16 * int(n))}w54" for n in found.pop("num_patches")
            ],
            nested=True,
            special=dict(
                zip(("<image>", "w53", "w54", "w55"), (*names.values(), "<video>"), strict=True)
            ),
            named={
                **{f"{name}_image_token": token for name, token in names.items()},
                "video_token": "<video>",
            },
            picture="<IMG_CONTEXT>",
            settings=dict(image_seq_length=16),
        )

    @property
    def tile(self) -> View:
        """The tokens of one tile."""
        config, ratio = self.config.vision_config, self.config.downsample_ratio
        sides = zip(config.image_size, config.patch_size, strict=True)
        return View(*(int(pixels // patch * ratio) for pixels, patch in sides))

    def grids(self, inputs: Mapping[str, Any]) -> list[Grid]:
        """A picture is an unbroken run of placeholders."""
        self.check_rectangular()
        tile = self.tile
        found = runs(inputs["input_ids"], self.image_token_id)
        return [Grid((tile,) * max(1, n // tile.n_tokens)) for n in found]

    def tokens(self, maps: list[Tensor], inputs: Mapping[str, Any]) -> list[Tensor]:
        tiles = torch.stack(maps)  # (tiles, P, c)
        side = int(tiles.shape[1] ** 0.5)
        shuffled = self.model.base_model.pixel_shuffle(
            tiles.unflatten(1, (side, side)), scale_factor=self.config.downsample_ratio
        )  # (tiles, h, w, P / N * c)
        means = shuffled.flatten(0, 2).unflatten(1, (-1, tiles.shape[-1])).mean(1)
        return list(means.split([grid.n_tokens for grid in self.grids(inputs)]))

    def vision(self, seen: list[Tensor], inputs: Mapping[str, Any]) -> list[Tensor]:
        tokens = torch.cat(seen).flatten(0, 1)  # the projector gets tokens here, not patches
        return list(tokens.split([grid.n_tokens for grid in self.grids(inputs)]))
