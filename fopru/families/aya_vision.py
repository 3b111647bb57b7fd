"""Aya Vision: tiles, each announced by text, and then a thumbnail (arXiv 2505.08751)."""

from __future__ import annotations

import transformers as hf

from fopru.families.cohere2_vision import TILE, Cohere2Vision, cut, towers
from fopru.families.example import IMAGE, PATCH, SIDE, Example


class AyaVision(Cohere2Vision, model_types=("aya_vision",)):
    title = "Aya Vision"
    notes = "each tile is a picture of its own, announced by text"

    @classmethod
    def example(cls, model_type: str) -> Example:
        def run(n_tiles: int) -> str:
            announced = [*(f"w{47 + i}" for i in range(1, n_tiles)), "w52"]
            return " ".join(["w53", *(f"{name} {TILE}" for name in announced), "w54"])

        return Example(
            hf.AyaVisionConfig(**towers(), image_token_index=IMAGE, vision_feature_layer=-1),
            cut(),
            runs=lambda found, rows: [run(int(n)) for n in found.pop("num_patches")],
            nested=True,
            special={
                "w48": "TILE_1",
                "w49": "TILE_2",
                "w50": "TILE_3",
                "w51": "TILE_4",
                "w52": "TILE_GLOBAL",
                "w53": "<|START_OF_IMG|>",
                "w54": "<|END_OF_IMG|>",
            },
            settings=dict(
                image_token="<image>",
                img_patch_token="<image>",
                patch_size=PATCH,
                img_size=SIDE,
                downsample_factor=2,
            ),
        )
