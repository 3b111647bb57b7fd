"""What every model family has to answer: where its tower is, and where each visual token sits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling


class UnsupportedModelError(ValueError):
    """The model, its vision tower, or a method on it is outside of what fopru supports."""


class View(NamedTuple):
    """One rectangle of visual tokens: the base picture, or the canvas of its tiles."""

    height: int
    width: int
    newline: bool = False
    """Whether a learned newline token ends each row (LLaVA-NeXT's canvas)."""

    @property
    def row_width(self) -> int:
        """Tokens in one row, its newline included."""
        return self.width + self.newline

    @property
    def n_tokens(self) -> int:
        return self.height * self.row_width


@dataclass(frozen=True)
class Grid:
    """Where the N visual tokens of one picture sit: view after view, each in reading order.

    A grid follows from sizes alone, before anything is encoded, so `Pruner.n_keep(grid)` is pure.
    """

    views: tuple[View, ...]

    @property
    def n_tokens(self) -> int:
        return sum(view.n_tokens for view in self.views)

    @cached_property
    def view(self) -> Tensor:
        """(N,) int64: 0 for the base view, 1 for the canvas of its tiles."""
        sizes = torch.tensor([view.n_tokens for view in self.views])
        return torch.arange(len(self.views)).repeat_interleave(sizes)

    @cached_property
    def rows(self) -> Tensor:
        """(N,) int64: row of each token within its view."""
        return torch.cat([torch.arange(v.n_tokens) // v.row_width for v in self.views])

    @cached_property
    def columns(self) -> Tensor:
        """(N,) int64: column of each token within its view, -1 for a newline token."""
        columns = torch.cat([torch.arange(v.n_tokens) % v.row_width for v in self.views])
        widths = torch.tensor([v.width for v in self.views])[self.view]
        return columns.where(columns < widths, -1)


class Family:
    """Adapter of one model family. Subclasses say what differs; nothing of the model is replaced.

    Subclassing with `model_types=(...)` registers the adapter for these `config.model_type`s.
    """

    registry: ClassVar[dict[str, type[Family]]] = {}

    pixels: ClassVar[tuple[str, ...]] = ("pixel_values",)
    """Inputs that describe the pictures; pruned inputs no longer carry them."""

    positions: ClassVar[str] = "reindex"
    """How the kept tokens are numbered when a pruner leaves `positions` at None."""

    def __init_subclass__(cls, model_types: tuple[str, ...] = (), **kwargs: Any):
        super().__init_subclass__(**kwargs)
        Family.registry.update(dict.fromkeys(model_types, cls))

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.config = model.config

    @staticmethod
    def of(model: nn.Module) -> Family:
        """The adapter for `model`.

        Raises:
            UnsupportedModelError: `model` is a wrapper (PEFT, `torch.compile`, data parallel), or
                no adapter is registered for its `config.model_type`.
        """
        if not isinstance(model, PreTrainedModel):
            raise UnsupportedModelError(
                f"{type(model).__name__} is not a transformers PreTrainedModel. Pass the model "
                "that it wraps (PEFT: `model.get_base_model()`; torch.compile: the one before it)."
            )
        family = Family.registry.get(model.config.model_type)
        if family is None:
            raise UnsupportedModelError(
                f"no adapter for model type {model.config.model_type!r} ({type(model).__name__}); "
                f"there are adapters for: {', '.join(sorted(Family.registry))}."
            )
        return family(model)

    @property
    def image_token_id(self) -> int:
        return self.config.image_token_id

    @property
    def tower(self) -> PreTrainedModel:
        """The vision tower."""
        return self.model.base_model.vision_tower

    @cached_property
    def blocks(self) -> nn.ModuleList:
        """The tower's transformer blocks, first to last.

        Raises:
            UnsupportedModelError: the tower is not a stack of attention blocks.
        """
        depth = getattr(self.tower.config, "num_hidden_layers", None)
        for stack in self.tower.modules():
            if not isinstance(stack, nn.ModuleList) or len(stack) != depth:
                continue
            if any(type(part).__name__.endswith("Attention") for part in stack[0].modules()):
                return stack
        raise UnsupportedModelError(
            f"the vision tower {type(self.tower).__name__} of {type(self.model).__name__} has no "
            "stack of attention blocks: there is no attention to score its tokens by."
        )

    def block(self, layer: int | None) -> int:
        """0-based index of the block that `layer` names; None is the block the model reads.

        Raises:
            ValueError: the tower has no such block.
            UnsupportedModelError: the model reads the embeddings, before any block.
        """
        depth = len(self.blocks)
        if layer is None:
            state = self.config.vision_feature_layer
            state = state if isinstance(state, int) else state[-1]
            index = state % (depth + 1) - 1
            if index < 0:
                raise UnsupportedModelError(
                    f"vision_feature_layer={self.config.vision_feature_layer} reads the embeddings,"
                    " which no attention block has seen: pass `layer`."
                )
            return index
        if not -depth <= layer < depth:
            raise ValueError(
                f"layer={layer}: the vision tower has {depth} blocks, "
                f"so layer is in [{-depth}, {depth - 1}]."
            )
        return layer % depth

    def grids(self, inputs: Mapping[str, Any]) -> list[Grid]:
        """The grid of each picture in `inputs`, in prompt order, from sizes alone."""
        raise NotImplementedError

    def features(self, inputs: Mapping[str, Any]) -> list[Tensor]:
        """Run the model's own vision path: (N, d) per picture, what the LLM would get."""
        pixels = {name: inputs[name].to(self.tower.device) for name in self.pixels}
        return list(self.model.get_image_features(**pixels, return_dict=True).pooler_output)

    @property
    def decoder(self) -> PreTrainedModel:
        """The language model's stack of layers, without its head."""
        return self.model.base_model.language_model

    @property
    def projector(self) -> nn.Module:
        """What takes the tower's features to the LLM's width."""
        return self.model.base_model.multi_modal_projector

    def tokens(self, maps: Tensor, inputs: Mapping[str, Any]) -> list[Tensor]:
        """Carry maps over encoder patches to the LLM's tokens, by the model's own spatial steps.

        Args:
            maps: (tiles, patches, c) c values for each patch of each tile the tower saw.

        Returns:
            (N, c) per picture; a newline token, which no patch stands behind, has `inf`.
        """
        raise NotImplementedError

    def encoder_outputs(self, features: list[Tensor]) -> dict[str, BaseModelOutputWithPooling]:
        """What `mm_encoder_outputs` takes for these features, (k, d) per picture.

        Made anew for each use: `generate` with beams edits it in place.
        """
        return {"image": BaseModelOutputWithPooling(pooler_output=list(features))}
