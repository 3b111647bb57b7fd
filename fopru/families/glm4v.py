"""GLM-4.1V, GLM-4.6V and GLM-OCR: as Qwen2-VL, four patches made one by a convolution
(arXiv 2507.01006)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fopru.families.qwen2_vl import Qwen2VL


class Glm4V(Qwen2VL, model_types=("glm4v", "glm46v", "glm_ocr")):
    title = "GLM-4.1V, GLM-4.6V, GLM-OCR"
    notes = "as Qwen2-VL; the times between the frames of a video are text, and stay"
    also = ()

    def vision(self, seen: list[Tensor], inputs: Mapping[str, Any]) -> list[Tensor]:
        (tokens,) = seen  # the projector gets what the convolution made of four patches
        return list(tokens.split([grid.n_tokens for grid in self.grids(inputs)]))


class Glm4VVideo(Glm4V):
    """Each frame is announced by its time, and its placeholders are those of a picture."""

    modality = "video"
    pixels = ("pixel_values_videos", "video_grid_thw")

    @property
    def image_token_id(self) -> int:
        return self.config.image_token_id


Glm4V.video = Glm4VVideo
