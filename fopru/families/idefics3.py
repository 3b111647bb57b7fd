"""Idefics3 and SmolVLM: tiles, each framed by text that says where it sits (arXiv 2408.12637,
2504.05299)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn
from transformers import PreTrainedModel

from fopru.families.base import Family
from fopru.families.example import IMAGE, SIDE, SQUARE, TEXT, VIT, Example
from fopru.families.grid import Grid, View
from fopru.versions import INSTALLED, LISTS


class Idefics3(Family, model_types=("idefics3", "smolvlm")):
    title = "Idefics3, SmolVLM"
    notes = "each tile is a picture of its own, framed by text"
    options = ("pixel_attention_mask",)
    merges = True
    stacked = INSTALLED < LISTS

    @classmethod
    def example(cls, model_type: str) -> Example:
        name = {"idefics3": "Idefics3", "smolvlm": "SmolVLM"}[model_type]
        config = getattr(hf, f"{name}Config")(
            vision_config=dict(**VIT, **SQUARE),
            text_config=hf.LlamaConfig(**TEXT),
            image_token_id=IMAGE,
        )
        images = getattr(hf, f"{name}ImageProcessorPil")(
            size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE}
        )

        def runs(found: dict[str, Any], rows: list) -> list[str]:
            tile = f"w53 {'<image> ' * 16}w54"
            sizes = (chain.from_iterable(found.pop(name)) for name in ("rows", "cols"))
            return [" ".join([tile] * (r * c + 1)) for r, c in zip(*sizes, strict=True)]

        quarters = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
        return Example(
            config,
            images,
            runs=runs,
            nested=True,
            options=dict(return_row_col_info=True),
            special={
                **{f"w{48 + i}": name for i, name in enumerate(quarters)},
                "w52": "<global-img>",
                "w53": "<fake_token_around_image>",
                "w54": "<end_of_utterance>",
                **({"w55": "<video>"} if model_type == "smolvlm" else {}),
            },
            settings=dict(image_seq_len=16),
            twin=model_type == "smolvlm",
        )

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
