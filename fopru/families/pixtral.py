"""Mistral Small 3, LLaVA and LightOnOCR with a Pixtral tower: pictures of any size, a row of tokens
after the other (arXiv 2410.07073)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from fopru.families.base import Family, Grid, View


class Mistral3(Family, model_types=("mistral3",)):
    """A break token stands behind each row, an end token behind the last one. They are text and
    stay, also behind a row of which no token is left: by counting them the language model still
    knows in which row a token was. They are not among the visual tokens that budgets count."""

    title = "Mistral Small 3"
    notes = "the break tokens between rows are text, and stay"
    pixels = ("pixel_values", "image_sizes")
    merges = True

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


class LightOnOcr(Mistral3, model_types=("lighton_ocr",)):
    title = "LightOnOCR"
    notes = "as Mistral Small 3, without break tokens"

    @property
    def tower(self) -> PreTrainedModel:
        return self.model.base_model.vision_encoder

    @property
    def projector(self) -> nn.Module:
        return self.model.base_model.vision_projection

    def marks(self, ids: Tensor) -> Tensor:
        return Family.marks(self, ids)
