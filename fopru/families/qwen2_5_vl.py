"""Qwen2.5-VL: as Qwen2-VL, most blocks of its tower attending within windows (arXiv 2502.13923)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import transformers as hf
from torch import Tensor
from transformers.vision_utils import get_vision_window_index

from fopru.families.example import PATCH, TEXT, Example
from fopru.families.patchwise import bounds
from fopru.families.qwen2_vl import ROPE, TOWER, Qwen2VL


class Qwen25VL(Qwen2VL, model_types=("qwen2_5_vl",)):
    title = "Qwen2.5-VL"
    notes = "as Qwen2-VL; scored in the last block that attends over the whole picture"
    placing = (*Qwen2VL.placing, get_vision_window_index)

    @classmethod
    def example(cls, model_type: str) -> Example:
        vision = dict(**TOWER, hidden_size=32, intermediate_size=48, out_hidden_size=48)
        vision |= dict(window_size=4 * PATCH, fullatt_block_indexes=[1, 3])
        return cls._example(hf.Qwen2_5_VLConfig, vision, {**TEXT, "rope_parameters": ROPE})

    @property
    def whole(self) -> Sequence[int]:
        return sorted(self.config.vision_config.fullatt_block_indexes)

    def block(self, layer: int | None) -> int:
        index = self.whole[-1] if layer is None else super().block(layer)
        if index not in self.whole:
            raise ValueError(
                f"layer={layer}: block {index} attends within windows; those that see the whole "
                f"picture are {', '.join(map(str, self.whole))}."
            )
        return index

    def windows(self, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """The order in which the tower has the tokens, (tokens,), and where its windows begin and
        end in that order, in patches."""
        config = self.config.vision_config
        return get_vision_window_index(
            sizes, config.spatial_merge_size, config.window_size, config.patch_size
        )

    def in_order(self, tokens: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        order, _ = self.windows(self.sizes(inputs))
        return tokens[order.argsort().to(tokens.device)]

    def placed(self, sizes: Tensor, keep: Tensor) -> dict[str, Tensor]:
        order, ends = self.windows(sizes)
        tokens = keep[:: self.side**2]  # (tokens,)
        ranks = tokens.cumsum(0) - 1  # of each token among those that are not left out
        there = tokens[order]
        return {
            **super().placed(sizes, keep),
            "window_index": ranks[order[there]],
            "cu_window_seqlens": bounds(ends, there.repeat_interleave(self.side**2)),
        }


class Qwen25VLVideo(Qwen25VL):
    modality = "video"
    pixels = ("pixel_values_videos", "video_grid_thw")


Qwen25VL.video = Qwen25VLVideo
