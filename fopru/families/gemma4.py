"""Gemma 4: pictures of any shape, padded to one number of patches, k x k of which make a token
(google/gemma-4-31B-it); and Gemma 4 unified, whose pictures go into the language model without a
tower (google/gemma-4-12B-it)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn
from transformers.image_processing_utils import BaseImageProcessor

from fopru.families.base import Family
from fopru.families.example import END, IMAGE, PATCH, START, TEXT, VIDEO, VIT, WORDS, Example
from fopru.families.grid import Grid, View

KINDS: dict[str, Any] = dict(
    head_dim=12,
    global_head_dim=24,
    num_global_key_value_heads=1,
    attention_k_eq_v=True,
    sliding_window=512,
    layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
    num_hidden_layers=6,
    use_bidirectional_attention="vision",
)
"""Two kinds of layers, as in the large models; the small ones have more (tests/test_gemma4.py)."""


PATCHES = ("patch_size", "pooling_kernel_size")
"""What of an image processor's settings the side of a token is made of."""


class Gemma4(Family, model_types=("gemma4",)):
    title = "Gemma 4"
    notes = "patches are averaged by their positions; videos keep their share of every frame"
    pixels = ("pixel_values", "image_position_ids")
    merges = True

    @classmethod
    def example(cls, model_type: str) -> Example:
        text = {**TEXT, **KINDS, "hidden_size_per_layer_input": 0}
        vision = dict(
            **VIT, num_key_value_heads=4, head_dim=8, patch_size=PATCH, pooling_kernel_size=2
        )
        vision |= dict(position_embedding_size=64, standardize=True)
        return cls._example(hf.Gemma4Config, text, vision, PATCH, 2)

    @staticmethod
    def _example(
        kind: type, text: dict[str, Any], vision: dict[str, Any], patch: int, side: int, **more: Any
    ) -> Example:
        """What the examples of both share."""
        named = {
            "image": ("<|image|>", IMAGE),
            "boi": ("<|image>", START),
            "eoi": ("<image|>", END),
            "video": ("<|video|>", VIDEO),
            "audio": ("<|audio|>", WORDS.index("w52")),
            "boa": ("<|audio>", WORDS.index("w51")),
            "eoa": ("<audio|>", WORDS.index("w50")),
        }
        ids = {f"{name}_token_id": index for name, (_, index) in named.items()}
        ids["eoa_token_index"] = ids.pop("eoa_token_id")

        def runs(found: dict[str, Any], rows: list) -> list[str]:
            return [f"w53 {'<image> ' * int(n)}w54" for n in found.pop("num_soft_tokens_per_image")]

        def clip(found: dict[str, Any]) -> dict[str, Any]:
            return {
                "pixel_values_videos": found["pixel_values"],
                "video_position_ids": found["image_position_ids"],
                "num_frames_per_video": torch.tensor([len(found["pixel_values"])]),
            }

        return Example(
            kind(text_config=text, vision_config=vision, audio_config=None, **ids),
            hf.Gemma4ImageProcessorPil(
                patch_size=patch, pooling_kernel_size=side, max_soft_tokens=70
            ),
            runs=runs,
            clip=clip,
            kinds="mm_token_type_ids",
            frame="w3",
            special={WORDS[index]: word for word, index in named.values()},
            named={f"{name}_token": word for name, (word, _) in named.items() if name != "video"},
            picture="<|image|>",
            video="<|video|>",
            settings={
                "feature_extractor": {"feature_extractor_type": "Gemma4AudioFeatureExtractor"}
            },
            **more,
        )

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
        video = self.modality == "video"
        return [Grid(tuple(islice(views, n)), video) for n in self.frames(inputs)]

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

    @classmethod
    def example(cls, model_type: str) -> Example:
        vision = dict(patch_size=PATCH, pooling_kernel_size=2, mm_embed_dim=32, mm_posemb_size=64)
        vision |= dict(output_proj_dims=32)
        text = {**TEXT, **KINDS}
        return cls._example(hf.Gemma4UnifiedConfig, text, vision, 2 * PATCH, 1, twin=True)

    @staticmethod
    def images(source: str | Path, **hub: Any) -> BaseImageProcessor:
        """Its own needs torchvision, and makes what Gemma 4's makes of larger patches, a token
        each."""
        kind = hf.Gemma4ImageProcessorPil
        settings, _ = kind.get_image_processor_dict(source, **hub)
        sizes = {name: settings.get(name, getattr(kind, name)) for name in PATCHES}
        return kind.from_dict(
            settings | {"patch_size": math.prod(sizes.values()), "pooling_kernel_size": 1}
        )

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
