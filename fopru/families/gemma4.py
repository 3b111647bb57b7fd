"""Gemma 4: pictures of any shape, padded to one number of patches, k x k of which make a token
(google/gemma-4-31B-it); and Gemma 4 unified, whose pictures go into the language model without a
tower (google/gemma-4-12B-it)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from fopru.families.base import Family, Grid, View


class Gemma4(Family, model_types=("gemma4",)):
    title = "Gemma 4"
    notes = "patches are averaged by their positions; videos keep their share of every frame"
    pixels = ("pixel_values", "image_position_ids")
    merges = True

    @property
    def projector(self) -> nn.Module:
        return self.model.base_model.embed_vision

    @property
    def side(self) -> int:
        """Patches along the side of a token."""
        return self.config.vision_config.pooling_kernel_size

    def places(self, inputs: Mapping[str, Any]) -> Tensor:
        """(pictures or frames, P, 2) column and row of each patch; -1 for padding."""
        return inputs[self.pixels[1]]

    def frames(self, inputs: Mapping[str, Any]) -> list[int]:
        """How many of these each picture or video has."""
        return [1] * len(self.places(inputs))

    def grids(self, inputs: Mapping[str, Any]) -> list[Grid]:
        sizes = self.places(inputs).amax(1) + 1  # (pictures, 2)
        views = iter([View(h // self.side, w // self.side) for w, h in sizes.tolist()])
        return [Grid(tuple(islice(views, n))) for n in self.frames(inputs)]

    def parted(self, tokens: Tensor, inputs: Mapping[str, Any]) -> list[Tensor]:
        """(N, c) per picture or video, of all their tokens."""
        return list(tokens.split([grid.n_tokens for grid in self.grids(inputs)]))

    def tokens(self, maps: list[Tensor], inputs: Mapping[str, Any]) -> list[Tensor]:
        patches = torch.stack(maps)  # (pictures, P, c)
        ones = torch.ones_like(patches[..., :1])  # the pooler scales: these say by how much
        places = self.places(inputs).to(patches.device)
        pooled, there = self.tower.pooler(
            hidden_states=torch.cat([patches, ones], -1),
            pixel_position_ids=places,
            padding_positions=(places == -1).all(-1),
            output_length=patches.shape[1] // self.side**2,
        )  # (pictures, P / side ** 2, c + 1)
        scaled = pooled[there]
        return self.parted(scaled[:, :-1] / scaled[:, -1:], inputs)

    def vision(self, seen: list[Tensor], inputs: Mapping[str, Any]) -> list[Tensor]:
        return self.parted(torch.cat(seen), inputs)  # the projector gets tokens, not patches


class Gemma4Video(Gemma4):
    modality = "video"
    pixels = ("pixel_values_videos", "video_position_ids", "num_frames_per_video")

    def frames(self, inputs: Mapping[str, Any]) -> list[int]:
        return torch.as_tensor(inputs[self.pixels[2]]).tolist()


Gemma4.video = Gemma4Video


class Gemma4Unified(Gemma4, model_types=("gemma4_unified",)):
    title = "Gemma 4 unified"
    notes = "no vision tower, so no attention to score by: methods that read features"
    side = 1
    depth = None

    @property
    def tower(self) -> nn.Module:
        """What takes pixels to the language model's width; it attends to nothing."""
        return self.model.base_model.embed_vision

    @property
    def projector(self) -> nn.Module:
        return self.tower.multimodal_embedder

    def vision(self, seen: list[Tensor], inputs: Mapping[str, Any]) -> list[Tensor]:
        states = torch.cat(seen)  # (pictures, P, d_v)
        there = (self.places(inputs) != -1).all(-1).to(states.device)
        return self.parted(states[there], inputs)


class Gemma4UnifiedVideo(Gemma4Unified):
    modality = "video"
    pixels = Gemma4Video.pixels
    frames = Gemma4Video.frames


Gemma4Unified.video = Gemma4UnifiedVideo
