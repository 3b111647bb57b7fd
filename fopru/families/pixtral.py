"""Mistral Small 3, Ministral 3, LLaVA and LightOnOCR with a Pixtral tower: pictures of any
size, a row of tokens after the other (arXiv 2410.07073)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
import transformers as hf
from torch import Tensor, nn
from transformers import PreTrainedModel

from fopru.families.base import Family
from fopru.families.example import IMAGE, PATCH, TEXT, VIT, Example
from fopru.families.grid import Grid, View

ROW = {"<image>": "[IMG]", "w52": "[IMG_BREAK]", "w54": "[IMG_END]"}


class Mistral3(Family, model_types=("mistral3",)):
    """A break token stands behind each row, an end token behind the last one. They are text and
    stay, also behind a row of which no token is left: by counting them the language model still
    knows in which row a token was. They are not among the visual tokens that budgets count."""

    title = "Mistral Small 3, Ministral 3"
    notes = "the break tokens between rows are text, and stay"
    pixels = ("pixel_values", "image_sizes")
    merges = True

    @classmethod
    def example(cls, model_type: str) -> Example:
        side, rope = 2 * PATCH, {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0}
        rope |= {"original_max_position_embeddings": 1024, "llama_4_scaling_beta": 0.1}
        config = hf.Mistral3Config(
            vision_config=cls._tower(),
            text_config=hf.Ministral3Config(**TEXT, head_dim=12, rope_parameters=rope),
            image_token_index=IMAGE,
            spatial_merge_size=2,
        )
        return cls._example(config, side, settings=dict(patch_size=PATCH, spatial_merge_size=2))

    @staticmethod
    def _tower() -> hf.PixtralVisionConfig:
        return hf.PixtralVisionConfig(**VIT, image_size=64, patch_size=PATCH)

    @staticmethod
    def _example(config: hf.PreTrainedConfig, side: int, **more: Any) -> Example:
        """What the examples of all models with this tower share; a token has `side` pixels."""

        def runs(found: dict[str, Any], rows: list) -> list[str]:
            sizes = (torch.as_tensor(found["image_sizes"]) // side).tolist()
            return ["w52 ".join(["<image> " * wide] * high) + "w54" for high, wide in sizes]

        size = {"height": side, "width": side}
        images = hf.PixtralImageProcessorPil(size={"longest_edge": 64}, patch_size=size)
        return Example(
            config,
            images,
            **{
                "runs": runs,
                "special": ROW,
                "picture": "[IMG]",
                "processor": "PixtralProcessor",
                **more,
            },
        )

    @property
    def side(self) -> int:
        """Patches along the side of a token."""
        return self.config.spatial_merge_size

    def sizes(self, inputs: Mapping[str, Any]) -> list[list[int]]:
        """Rows and columns of patches of each picture."""
        sizes = torch.as_tensor(inputs["image_sizes"])
        return (sizes // self.config.vision_config.patch_size).tolist()

    def grids(self, inputs: Mapping[str, Any]) -> list[Grid]:
        return [Grid((View(h // self.side, w // self.side),)) for h, w in self.sizes(inputs)]

    def tokens(self, maps: list[Tensor], inputs: Mapping[str, Any]) -> list[Tensor]:
        sizes = self.sizes(inputs)
        pictures = torch.cat(maps).split([h * w for h, w in sizes])  # (patches, c) each
        tables = (p.T.unflatten(1, size) for p, size in zip(pictures, sizes, strict=True))
        return [F.avg_pool2d(table, self.side).flatten(1).T for table in tables]  # (N, c) each

    def marks(self, ids: Tensor) -> Tensor:
        visual = ids == self.image_token_id
        return F.pad(visual, (1, 0))[:-1] & ~visual


class LlavaPixtral(Mistral3, model_types=("llava/pixtral",)):
    title = "LLaVA with a Pixtral tower"
    notes = "as Mistral Small 3, and each patch is a token"
    merges = False
    side = 1

    @classmethod
    def example(cls, model_type: str) -> Example:
        text = {**TEXT, "sliding_window": None}
        config = hf.LlavaConfig(
            vision_config=cls._tower(),
            text_config=hf.MistralConfig(**text),
            image_token_index=IMAGE,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        )
        return cls._example(config, PATCH, twin=True, settings=dict(patch_size=PATCH))


class LightOnOcr(Mistral3, model_types=("lighton_ocr",)):
    title = "LightOnOCR"
    notes = "as Mistral Small 3, without break tokens"

    @classmethod
    def example(cls, model_type: str) -> Example:
        config = hf.LightOnOcrConfig(
            vision_config=cls._tower(),
            text_config=hf.Qwen3Config(**TEXT, head_dim=12),
            image_token_id=IMAGE,
        )
        names = dict(zip(("image", "image_break", "image_end"), ROW.values(), strict=True))
        return cls._example(
            config,
            2 * PATCH,
            runs=None,
            twin=True,
            named={f"{name}_token": token for name, token in names.items()},
            processor="LightOnOcrProcessor",
            settings=dict(patch_size=PATCH, spatial_merge_size=2),
        )

    @property
    def tower(self) -> PreTrainedModel:
        return self.model.base_model.vision_encoder

    @property
    def projector(self) -> nn.Module:
        return self.model.base_model.vision_projection

    def marks(self, ids: Tensor) -> Tensor:
        return Family.marks(self, ids)
