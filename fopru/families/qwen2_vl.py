"""Qwen2-VL: pictures of any size, four patches a token, positions in time, height and width
(arXiv 2409.12191)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
import transformers as hf
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput
from transformers.vision_utils import (
    get_vision_attention_seqlens,
    get_vision_cu_seqlens,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
)

from fopru.families.base import Family
from fopru.families.example import IMAGE, PATCH, TEXT, VIDEO, Example
from fopru.families.grid import Grid, View
from fopru.families.patchwise import bounds, check_takes, interpolated

TOWER: dict[str, Any] = dict(
    depth=4, num_heads=4, patch_size=PATCH, spatial_merge_size=2, temporal_patch_size=2
)
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]}


class Qwen2VL(Family, model_types=("qwen2_vl",)):
    title = "Qwen2-VL"
    notes = "original position ids; videos keep their share of every pair of frames"
    pixels = ("pixel_values", "image_grid_thw")
    also = ("second_per_grid_ts",)
    positions = "preserve"
    spatial = True
    merges = True
    patchwise = True
    placing: ClassVar[tuple[Callable[..., Any], ...]] = (
        get_vision_position_ids,
        get_vision_attention_seqlens,
    )
    """What the tower places its patches by; it takes the results from its caller too."""

    @classmethod
    def example(cls, model_type: str) -> Example:
        vision = dict(**TOWER, embed_dim=32, hidden_size=48, mlp_ratio=2)
        return cls._example(hf.Qwen2VLConfig, vision, {**TEXT, "rope_parameters": ROPE})

    @staticmethod
    def _example(kind: type, vision: dict[str, Any], text: dict[str, Any], **more: Any) -> Example:
        """What the examples of all of Qwen's models share."""
        ids = dict(image_token_id=IMAGE, video_token_id=VIDEO)
        size = {"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
        special = {
            "<image>": "<|image_pad|>",
            "w55": "<|video_pad|>",
            "w53": "<|vision_start|>",
            "w54": "<|vision_end|>",
        }
        return Example(
            kind(vision_config=vision, text_config=text, **ids),
            hf.Qwen2VLImageProcessorPil(patch_size=PATCH, merge_size=2, size=size),
            kinds="mm_token_type_ids",
            special=special,
            picture="<|vision_start|><|image_pad|><|vision_end|>",
            video="<|vision_start|><|video_pad|><|vision_end|>",
            **more,
        )

    @property
    def tower(self) -> PreTrainedModel:
        return self.model.base_model.visual

    @property
    def projector(self) -> nn.Module:
        return self.tower.merger

    @property
    def side(self) -> int:
        """Patches along the side of a token."""
        return self.config.vision_config.spatial_merge_size

    def sizes(self, inputs: Mapping[str, Any]) -> Tensor:
        """(pictures, 3) patches in time, height and width."""
        return inputs[self.pixels[1]]

    def grids(self, inputs: Mapping[str, Any]) -> list[Grid]:
        sizes = self.sizes(inputs).tolist()
        video = self.modality == "video"
        return [Grid((View(h // self.side, w // self.side),) * t, video) for t, h, w in sizes]

    def tokens(self, maps: list[Tensor], inputs: Mapping[str, Any]) -> list[Tensor]:
        patches = torch.cat(maps)  # (patches, c): those of a token stand side by side
        tokens = patches.unflatten(0, (-1, self.side**2)).mean(1)
        tokens = self.in_order(tokens, inputs)
        return list(tokens.split((self.sizes(inputs).prod(1) // self.side**2).tolist()))

    def in_order(self, tokens: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """Tokens as the tower has them, in the order of the prompt."""
        return tokens

    def token_pixels(self, inputs: Mapping[str, Any]) -> list[Tensor]:
        """(N, c) per picture: the pixels of each token's patches, as the processor made them."""
        tokens = inputs[self.pixels[0]].unflatten(0, (-1, self.side**2)).flatten(1)
        return list(tokens.split([grid.n_tokens for grid in self.grids(inputs)]))

    def pictures_of(self, inputs: Mapping[str, Any], kept: list[Tensor]) -> ModelOutput:
        """Run the tower with the patches of some tokens only, each where it is in its picture.

        Args:
            inputs: As for `pictures`.
            kept: (k,) int64 per picture: the sorted places of its tokens that are not left out, at
                least one of each picture.

        Raises:
            UnsupportedModelError: the installed transformers places patches in another way.
        """
        check_takes(self.tower, self.placing)
        shown = self.shown(inputs)
        patches, sizes = (shown[name] for name in self.pixels)
        flags = [torch.zeros(grid.n_tokens, dtype=torch.bool) for grid in self.grids(inputs)]
        for some, places in zip(flags, kept, strict=True):
            some[places] = True
        keep = torch.cat(flags).repeat_interleave(self.side**2)  # (patches,)
        patches = patches[keep.to(patches.device)].type(self.tower.dtype)
        placed = self.placed(sizes.cpu(), keep)
        placed = {name: table.to(patches.device) for name, table in placed.items()}
        return self.tower(patches, grid_thw=sizes, return_dict=True, **placed)

    def placed(self, sizes: Tensor, keep: Tensor) -> dict[str, Tensor]:
        """What the tower takes of its caller when some patches are left out.

        Args:
            sizes: (pictures, 3) patches in time, height and width.
            keep: (patches,) bool: False for those that are left out, by whole tokens.
        """
        return {
            "position_ids": get_vision_position_ids(sizes, self.side)[keep],
            "cu_seqlens": bounds(get_vision_cu_seqlens(sizes), keep),
        }

    def position_ids(self, inputs: Mapping[str, Any], mask: Tensor, grids: list[Grid]) -> Tensor:
        ids, kinds = inputs["input_ids"], inputs.get("mm_token_type_ids")
        if kinds is None:
            kinds = (ids == self.image_token_id) * (2 if self.modality == "video" else 1)
        views = [(len(grid.views), *grid.views[0][:2]) for grid in grids]
        sizes = torch.tensor(views) * torch.tensor([1, self.side, self.side])
        also = {name: inputs[name] for name in self.also if inputs.get(name) is not None}
        positions, _ = self.model.base_model.get_rope_index(
            ids,
            mm_token_type_ids=kinds,
            attention_mask=mask,
            **{f"{self.modality}_grid_thw": sizes},
            **also,
        )
        return positions

    def went_on(self, pruned: Mapping[str, Any]) -> None:
        """Steps on the cache are numbered by the model, from how far positions are ahead of it."""
        last = pruned["position_ids"][1:].amax((0, 2))  # (B,)
        ahead = last + 1 - pruned["attention_mask"].sum(1)
        self.model.base_model.rope_deltas = ahead[:, None]


class Qwen2VLVideo(Qwen2VL):
    modality = "video"
    pixels = ("pixel_values_videos", "video_grid_thw")


Qwen2VL.video = Qwen2VLVideo


class Interpolating(Qwen2VL):
    """What Qwen3-VL and Qwen3.5 share: a tower that mixes the positions of its patches from a table
    of learned ones."""

    placing = (*Qwen2VL.placing, get_vision_interpolation_indices_and_weights)

    def placed(self, sizes: Tensor, keep: Tensor) -> dict[str, Tensor]:
        return super().placed(sizes, keep) | interpolated(self.tower, sizes, keep)
