"""What every model family has to answer: where its tower is, and where each visual token sits."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput

from fopru.families.example import Example
from fopru.families.grid import Grid
from fopru.families.patchwise import taken_whole
from fopru.versions import UnsupportedModelError


class Family:
    """Adapter of one model family. Subclasses say what differs; nothing of the model is replaced.

    Subclassing with `model_types=(...)` registers the adapter for these `config.model_type`s, or
    for "type/tower" where only models with that type of vision tower differ. A class that is
    defined again, as in a notebook's cell, takes its own place; a second class for a type raises a
    ValueError.
    """

    registry: ClassVar[dict[str, type[Family]]] = {}
    generic: ClassVar[type[Family]]
    """The adapter for models of which none is registered."""

    title: ClassVar[str]
    notes: ClassVar[str]
    """What users should know, in half a line."""

    modality: ClassVar[str] = "image"
    video: ClassVar[type[Family] | None] = None
    """The adapter for prompts with videos, where there is one."""

    pixels: ClassVar[tuple[str, ...]] = ("pixel_values",)
    """Inputs that describe the pictures; pruned inputs no longer carry them."""
    options: ClassVar[tuple[str, ...]] = ()
    """Inputs that may come with the pixels, and go with them."""

    also: ClassVar[tuple[str, ...]] = ()
    """Inputs that position ids depend on."""

    positions: ClassVar[str] = "reindex"
    """How the kept tokens are numbered when a pruner leaves `positions` at None."""
    spatial: ClassVar[bool] = False
    """Whether position ids have rows for time, height and width (M-RoPE): they cannot be
    numbered anew."""
    counts_from: ClassVar[int] = 0
    """What the model's `generate` adds to all position ids on their way to `forward`."""
    looks_back: ClassVar[bool] = True
    """Whether the beginning of a prompt, a picture and all, is the same whatever follows it."""
    merges: ClassVar[bool] = False
    """Whether several patches make one token, so that no one patch can be projected alone."""
    stacked: ClassVar[bool] = False
    """Whether the model takes the tokens of all pictures as one tensor, and no list."""
    patchwise: ClassVar[bool] = False
    """Whether the tower takes single patches with their places, so that some can be left out."""

    def __init_subclass__(cls, model_types: tuple[str, ...] = (), **kwargs: Any):
        super().__init_subclass__(**kwargs)
        for name in model_types:
            there = Family.registry.get(name, cls)
            if (there.__module__, there.__qualname__) != (cls.__module__, cls.__qualname__):
                raise ValueError(
                    f"model_types={model_types}: {there.__module__}.{there.__qualname__} is the "
                    f"adapter for {name!r} already, and a type has one."
                )
        Family.registry.update(dict.fromkeys(model_types, cls))

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.config = model.config

    @staticmethod
    def of(model: nn.Module) -> Family:
        """The adapter for `model`.

        Raises:
            UnsupportedModelError: `model` is a wrapper (PEFT, `torch.compile`, data parallel), or
                no adapter is registered for its `config.model_type` and the generic one does not
                fit.
        """
        if not isinstance(model, PreTrainedModel):
            raise UnsupportedModelError(
                f"{type(model).__name__} is not a transformers PreTrainedModel. Pass the model "
                "that it wraps (PEFT: `model.get_base_model()`; torch.compile: the one before it)."
            )
        return Family.kind(model.config, type(model))(model)

    @staticmethod
    def kind(
        config: PreTrainedConfig, model_class: type[PreTrainedModel] | None = None
    ) -> type[Family]:
        """The class of the adapter for models with this configuration: its own, or the generic one.

        Args:
            model_class: the class of the model; left out, the one that transformers'
                AutoModelForImageTextToText takes.

        Raises:
            UnsupportedModelError: none is registered for its `model_type`, and the generic one does
                not fit.
        """
        tower = getattr(getattr(config, "vision_config", None), "model_type", None)
        for name in (f"{config.model_type}/{tower}", config.model_type):
            if name in Family.registry:
                return Family.registry[name]
        if model_class is None:
            model_class = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.get(type(config), None)
        why = Family.generic.refusal(model_class, config)
        if why is None:
            return Family.generic
        raise UnsupportedModelError(
            f"there is no adapter for model type {config.model_type!r}, and the generic one does "
            f"not fit: {why}. There are adapters for: {', '.join(sorted(Family.registry))}."
        )

    @classmethod
    def example(cls, model_type: str) -> Example:
        """What a tiny random model of `model_type`, one of the adapter's, is made of.

        Every adapter has one: the tests run over all of the registry.
        """
        raise NotImplementedError(f"{cls.__name__} has no `example`: tests cannot run on it.")

    def reading(self, inputs: Mapping[str, Any]) -> Family:
        """The adapter for what is in `inputs`: this one, or that of videos.

        Raises:
            UnsupportedModelError: both images and videos, or videos where there is no adapter.
        """
        videos = any(name.endswith("_videos") and inputs[name] is not None for name in inputs)
        if not videos:
            return self
        name = type(self.model).__name__
        if inputs.get(self.pixels[0]) is not None:
            raise UnsupportedModelError(
                f"`inputs` of {name} hold images and videos: prune prompts that hold one kind."
            )
        if self.video is None:
            there = sorted({f.title for f in Family.registry.values() if f.video is not None})
            raise UnsupportedModelError(
                f"`inputs` of {name} hold videos; they can be pruned for: {', '.join(there)}."
            )
        return self.video(self.model)

    def check(self, needs: Collection[str]) -> None:
        """Refuse a method that needs (`Pruner.needs`) what is not known of this family.

        Raises:
            UnsupportedModelError: it does. Of models with an adapter of their own all is known, but
                not how to leave "pixels" out before every tower.
        """
        if "pixels" in needs and not (self.patchwise and self.modality == "image"):
            raise taken_whole(self)

    @staticmethod
    def images(source: str | Path, **hub: Any) -> BaseImageProcessor:
        """What prepares pictures, with PIL, as the files in `source` say."""
        return AutoImageProcessor.from_pretrained(source, backend="pil", **hub)

    @property
    def image_token_id(self) -> int:
        """What stands in `input_ids` for each visual token."""
        return getattr(self.config, f"{self.modality}_token_id")

    def marks(self, ids: Tensor) -> Tensor:
        """(L,) bool: tokens of a prompt that frame its pictures, and that no config names."""
        return torch.zeros_like(ids, dtype=torch.bool)

    @property
    def tower(self) -> PreTrainedModel:
        """The vision tower."""
        return self.model.base_model.vision_tower

    @cached_property
    def n_prefix(self) -> int:
        """Tokens that the tower puts before the patches: the CLS token, which is the first, and
        registers, which stand for no place in the picture (arXiv 2309.16588)."""
        table = dict(self.tower.named_parameters())
        cls = sum(name.endswith(("class_embedding", "cls_token")) for name in table)
        return cls + sum(p.shape[-2] for n, p in table.items() if n.endswith("register_tokens"))

    @property
    def heads(self) -> int:
        """Attention heads of the tower."""
        config = self.tower.config
        return getattr(config, "num_attention_heads", getattr(config, "num_heads", None))

    @property
    def depth(self) -> int | None:
        """Blocks of the tower; None where it has none."""
        config = self.tower.config
        return getattr(config, "num_hidden_layers", getattr(config, "depth", None))

    @cached_property
    def blocks(self) -> nn.ModuleList:
        """The tower's transformer blocks, first to last.

        Raises:
            UnsupportedModelError: the tower is not a stack of attention blocks.
        """
        for stack in self.tower.modules():
            if not isinstance(stack, nn.ModuleList) or len(stack) != self.depth:
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
            state = getattr(self.config, "vision_feature_layer", -1)
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

    @property
    def whole(self) -> Sequence[int]:
        """0-based indices of the blocks that attend over the whole picture, first to last."""
        return range(len(self.blocks))

    def nearest_block(self, share: float) -> int:
        """The block at a share of the depth, 3/8 of 24 being block 8: the closest one of those that
        attend over the whole picture, of two the later one."""
        wanted = round(share * len(self.blocks)) - 1
        return min(self.whole, key=lambda index: (abs(index - wanted), -index))

    def idle(self, deepest: int) -> list[nn.Module]:
        """Blocks after `deepest` whose output the model does not read: LLaVA's last one."""
        layers = getattr(self.config, "vision_feature_layer", -1)
        states = [layers] if isinstance(layers, int) else layers
        if self.depth is None or -1 in states:
            return []
        read = max(state % (self.depth + 1) for state in states)  # state i is block i - 1's output
        return list(self.blocks)[max(read, deepest + 1) :]

    def grids(self, inputs: Mapping[str, Any]) -> list[Grid]:
        """The grid of each picture in `inputs`, in prompt order, from sizes alone."""
        raise NotImplementedError

    def pictures(self, inputs: Mapping[str, Any]) -> ModelOutput:
        """Run the model's own vision path."""
        encode = getattr(self.model.base_model, f"get_{self.modality}_features")
        return encode(**self.shown(inputs), return_dict=True)

    def shown(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """What describes the pictures, where the tower is."""
        names = [n for n in (*self.pixels, *self.options) if inputs.get(n) is not None]
        pixels = {n: torch.as_tensor(inputs[n]) for n in names}  # sizes may come as a list
        if not hasattr(self.model, "hf_device_map"):  # else accelerate's hooks move them
            device = next(self.tower.parameters()).device
            pixels = {n: x.to(device) for n, x in pixels.items()}
        return pixels

    def features(self, output: ModelOutput, sizes: list[int]) -> list[Tensor]:
        """(N, d) per picture of these sizes, what the LLM would get, from `pictures`."""
        tokens = output.pooler_output
        if not isinstance(tokens, Tensor):
            tokens = torch.cat(list(tokens))
        return list(tokens.flatten(0, -2).split(sizes))

    def deep(self, output: ModelOutput, sizes: list[int]) -> list[Tensor | None]:
        """(N, c) per picture, what later layers of the LLM get too; None in most families."""
        return [None] * len(sizes)

    @property
    def decoder(self) -> PreTrainedModel:
        """The language model's stack of layers, without its head."""
        return self.model.base_model.language_model

    @property
    def n_deep(self) -> int:
        """Layers of the LLM, from the first, after which visual tokens get more features."""
        return 0

    @property
    def projector(self) -> nn.Module:
        """What takes the tower's features to the LLM's width."""
        return self.model.base_model.multi_modal_projector

    def tokens(self, maps: list[Tensor], inputs: Mapping[str, Any]) -> list[Tensor]:
        """Carry maps over encoder patches to the LLM's tokens, by the model's own spatial steps.

        Args:
            maps: (patches, c) c values for each patch of each tile, picture or frame that the
                tower saw.

        Returns:
            (N, c) per picture; a newline token, which no patch stands behind, has `inf`.
        """
        raise NotImplementedError

    def vision(self, seen: list[Tensor], inputs: Mapping[str, Any]) -> list[Tensor]:
        """(N, d_v) per picture, of what the projector got."""
        maps = [tile for call in seen for tile in (call if call.dim() == 3 else [call])]
        return self.tokens(maps, inputs)

    def position_ids(self, inputs: Mapping[str, Any], mask: Tensor, grids: list[Grid]) -> Tensor:
        """(B, L) position ids of the whole prompt; (3, B, L) where they are `spatial`."""
        return (mask.cumsum(1) - 1).clamp(min=0)

    def went_on(self, pruned: Mapping[str, Any]) -> None:
        """Called before a forward gets shorter inputs, for what the model's next steps rely on."""

    def encoder_outputs(self, features: list[Tensor]) -> dict[str, ModelOutput]:
        """What `mm_encoder_outputs` takes for these features, (k, d) per picture.

        Made anew for each use: `generate` with beams edits it in place.
        """
        if not self.stacked:
            return {self.modality: BaseModelOutputWithPooling(pooler_output=list(features))}
        size = math.gcd(*map(len, features))  # by it `generate` tells rows apart for its beams
        tokens = torch.cat(features).unflatten(0, (-1, size))  # (n, size, d)
        return {self.modality: BaseModelOutputWithPooling(pooler_output=tokens)}
