"""Models without an adapter of their own: what can be done with their visual tokens alone."""

from __future__ import annotations

import inspect
import re
import sys
import warnings
from collections.abc import Collection, Mapping
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from fopru.families.base import Family, UnsupportedModelError
from fopru.families.grid import Grid, View, runs

MAIN = ("pixel_values", "pixel_values_images")
"""What models call their pictures."""

KNOWN = frozenset({"text"})
"""What methods may need (`Pruner.needs`) that is known of any model."""

UNKNOWN = {
    "grid": "where in the picture a token sits",
    "keys": "the keys of its vision tower",
    "layers": "the layers of its language model",
    "pixels": "which pixels its tokens are made of",
    "vision": "the features of its vision tower",
}

SERVES = (
    "Methods work that read the visual tokens and the question alone, as 'divprune', 'dpp', 'tome' "
    "and 'random'."
)
"""What the generic adapter is good for."""

_TOLD: set[str] = set()
"""Model types of which it was said that they go through the generic adapter."""

_LISTS: WeakSet[nn.Module] = WeakSet()
"""Models whose pictures are a list of tensors, one each, and not one tensor."""


class Generic(Family):
    """The adapter for whatever model turns pictures into a flat run of tokens behind placeholders.

    A picture is an unbroken run of placeholders in `input_ids`, one view of a single row: of its
    tokens nothing is known but their order. So it serves methods that read the tokens which the
    language model would get, and the question. What reads the tower (attention, keys, features) or
    the place of a token in the picture is refused.
    """

    title = "the generic adapter"
    notes = "methods that read the tokens and the question alone"
    looks_back = False  # nothing says that it does

    @staticmethod
    def refusal(kind: type[PreTrainedModel] | None, config: PreTrainedConfig) -> str | None:
        """Why the generic adapter does not fit a class of model; None where it does.

        It is decided by the class itself: by the arguments of its forward, by its configuration,
        and by what the source of its module reads of pictures that come encoded.

        Args:
            kind: the class that answers questions, with the language model's head.
            config: a configuration of it.
        """
        if kind is None:
            return "transformers has no model of its type that answers questions about pictures"
        takes = inspect.signature(kind.forward).parameters
        if config.is_encoder_decoder or "decoder_input_ids" in takes:
            return "it has, or may have, an encoder and a decoder, and not one sequence"
        if "mm_encoder_outputs" not in takes:
            return "it takes no pictures that are encoded already (mm_encoder_outputs)"
        if not any(name in takes for name in MAIN):
            return f"it takes no pictures by a usual name ({', '.join(MAIN)})"
        try:
            source = inspect.getsource(sys.modules[kind.__module__])
        except OSError:
            return "the source of its module is not there to be read"
        read = set(re.findall(r"""mm_encoder_outputs\[["']image["']\]\.(\w+)""", source))
        if "deepstack" in str(config) or any("deepstack" in name for name in read):
            return "layers of its language model get features of their own (deepstack)"
        if "def get_rope_index" in source:
            return "its position ids are places in the picture (M-RoPE)"
        if read != {"pooler_output"}:
            found = ", ".join(sorted(read)) or "nothing that its source names"
            return f"of encoded pictures it reads {found}, and not the tokens alone (pooler_output)"
        if getattr(config, "image_token_id", None) is None:
            return "its configuration names no image_token_id"
        return None

    def __init__(self, model: PreTrainedModel):
        super().__init__(model)
        self.title = f"{self.config.model_type} (generic adapter)"
        shown = inspect.signature(model.forward).parameters
        self.pixels = tuple(name for name in MAIN if name in shown)[:1]
        told = inspect.signature(model.base_model.get_image_features).parameters
        self.options = tuple(name for name in told if name not in (*MAIN, "kwargs"))
        if self.config.model_type not in _TOLD:
            _TOLD.add(self.config.model_type)
            warnings.warn(
                f"fopru has no adapter for model type {self.config.model_type!r}, and takes the "
                f"generic one. {SERVES}",
                stacklevel=3,
            )

    def check(self, needs: Collection[str]) -> None:
        if missing := sorted(needs - KNOWN):
            raise self._lacking(missing[0])

    def _lacking(self, need: str) -> UnsupportedModelError:
        what = UNKNOWN.get(need, "the attention of its vision tower")
        return UnsupportedModelError(
            f"there is no adapter for model type {self.config.model_type!r}, and the generic one "
            f"does not know {what}, which this method reads. {SERVES}"
        )

    @property
    def tower(self) -> PreTrainedModel:
        """Where pictures go first: the vision tower, where the model has it under a usual name."""
        tower = self.model.get_encoder(modality=self.modality)
        return self.decoder if tower in (self.model, self.model.base_model) else tower

    @property
    def decoder(self) -> PreTrainedModel:
        return self.model.get_decoder()

    def block(self, layer: int | None) -> int:
        raise self._lacking("received")

    def idle(self, deepest: int) -> list[nn.Module]:
        return []

    def grids(self, inputs: Mapping[str, Any]) -> list[Grid]:
        """One row each, as long as the picture's run of placeholders."""
        ids = inputs.get("input_ids")
        found = [] if ids is None else runs(ids, self.image_token_id)
        return [Grid((View(1, n),), flat=True) for n in found]

    def features(self, output: ModelOutput, sizes: list[int]) -> list[Tensor]:
        tokens = output.pooler_output
        if isinstance(tokens, Tensor):
            parts = [tokens.shape[-2]] * tokens[..., 0, 0].numel() if tokens.dim() > 2 else sizes
        else:
            _LISTS.add(self.model)
            parts = [len(picture) for picture in tokens]
        if sum(parts) != sum(sizes):
            raise ValueError(
                f"images and placeholders do not match: the {len(parts)} image(s) have "
                f"{sum(parts)} visual tokens, but input_ids hold {sum(sizes)} placeholders (token "
                f"id {self.image_token_id})."
            )
        ends = set(torch.tensor(parts).cumsum(0).tolist())
        if not ends.issuperset(torch.tensor(sizes).cumsum(0).tolist()):
            raise UnsupportedModelError(
                f"pictures of {', '.join(map(str, parts))} visual tokens are split by text into "
                f"runs of {', '.join(map(str, sizes))} placeholders: the generic adapter takes "
                "pictures whose placeholders stand side by side, each encoded by itself."
            )
        return super().features(output, sizes)

    @property
    def stacked(self) -> bool:
        """Whether the model's own pictures came as one tensor when they were encoded."""
        return self.model not in _LISTS


Family.generic = Generic
