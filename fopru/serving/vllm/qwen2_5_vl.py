"""Qwen2.5-VL in vLLM, pruned: pictures of any size; kept tokens keep their places in them.

Experimental. It rests on what vLLM has for pruned videos: channels behind a picture's features
carry its tokens' places in time, height and width, and are chosen with them. vLLM turns that on by
a `--video-pruning-rate` above 0, so an engine is started with one, and without videos.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from vllm.logger import init_logger
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from fopru.encoding import EncodedImage
from fopru.serving.vllm.processing import PicturesAlone, PrunedProcessor
from fopru.serving.vllm.pruning import Pruned
from fopru.tapping import Attention

logger = init_logger(__name__)


class Info(PicturesAlone, Qwen2_5_VLProcessingInfo):
    """The processing info of Qwen2.5-VL, without videos."""


class Processor(PrunedProcessor, Qwen2_5_VLMultiModalProcessor):
    """The processor of Qwen2.5-VL."""


class Placed(Pruned):
    """What Qwen2.5-VL and Qwen3-VL share: kept tokens keep their places in the picture."""

    channels: ClassVar[int]
    """Behind a picture's features: time, height and width of a token, and what videos need."""

    def __init__(self, *, vllm_config: Any, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        title = self.family.title
        logger.warning("fopru: %s is experimental in vLLM: check it by fopru serve-check.", title)
        if not self.is_multimodal_pruning_enabled:
            raise ValueError(
                f"fopru: kept tokens of {title} need their places, which vLLM carries for pruned "
                "videos alone: start it with --video-pruning-rate 1e-6."
            )

    def attention_layers(self) -> Sequence[nn.Module]:
        return [block.attn for block in self.visual.blocks]

    def projector(self) -> nn.Module:
        return self.visual.merger

    def attention(self, query: Tensor, key: Tensor, scale: float, seen: Mapping) -> list[Attention]:
        lengths = seen["image_grid_thw"].prod(1).tolist()
        pairs = zip(query.split(lengths, 2), key.split(lengths, 2), strict=True)
        return [Attention(q, k, scale) for q, k in pairs]  # (1, h, P, d)

    def images(self, tokens: list[Tensor], seen: Mapping[str, Any]) -> tuple[EncodedImage, ...]:
        sizes = seen["image_grid_thw"].cpu()
        return super().images(
            [x[:, : -self.channels] for x in tokens], {**seen, "image_grid_thw": sizes}
        )

    def get_mrope_input_positions(
        self, input_tokens: Sequence[int], mm_features: Sequence[Any]
    ) -> tuple[Tensor, int]:
        """Return (3, L) positions: text is numbered as in the whole prompt, since that follows from
        sizes; visual tokens get their places once they are encoded."""
        parts, start, at = [], 0, 0
        for feature in sorted(mm_features, key=lambda feature: feature.mm_position.offset):
            offset, length = feature.mm_position.offset, feature.mm_position.length
            _, height, width = feature.data["image_grid_thw"].data.tolist()
            parts += [at + np.arange(offset - start), np.full(length, at + offset - start)]
            at += offset - start + max(height, width) // self.visual.spatial_merge_size
            start = offset + length
        parts.append(at + np.arange(len(input_tokens) - start))
        positions = torch.from_numpy(np.concatenate(parts)).expand(3, -1).clone()
        return positions, at - start

    def recompute_mrope_positions(
        self,
        input_ids: Any,
        multimodal_embeddings: Sequence[Tensor],
        mrope_positions: Tensor,
        num_computed_tokens: int,
    ) -> tuple[list[Tensor], Tensor, int]:
        """Return features without their places, and (3, L) positions in which the visual tokens of
        this chunk have theirs: each counted from where its picture starts.

        vLLM's own numbers the text behind portrait pictures by their width, and loses count where a
        chunk of the prompt ends in or before a picture.
        """
        positions, n = mrope_positions.clone(), mrope_positions.shape[1]
        if multimodal_embeddings:
            ids = torch.as_tensor(input_ids, device=positions.device)
            visual = ids == self.config.image_token_id  # (L,)
            counted = torch.arange(len(ids), device=ids.device)
            begins = torch.where(visual & ~visual.roll(1), counted, 0).cummax(0).values
            carried = [x[:, -self.channels :] for x in multimodal_embeddings]
            places = torch.cat(carried)[:, :3].long()  # (k, 3)
            at = visual.nonzero()[:, 0]
            at = at[at >= num_computed_tokens][: len(places)]
            before = positions[:, begins[at] - 1]  # of <|vision_start|>
            positions[:, at] = before + 1 + places.T.to(positions.device)
        features = [x[:, : -self.channels] for x in multimodal_embeddings]
        return features, positions, int(positions.max()) + 1 - n


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=Info, dummy_inputs=Qwen2_5_VLDummyInputsBuilder
)
class PrunedQwen25VL(Placed, Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL whose pictures keep their budget of visual tokens."""

    channels = 4
