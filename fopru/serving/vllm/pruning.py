"""What every pruned architecture shares: queries and keys are noted, and kept features go on.

A hook before vLLM's attention layer sees queries and keys whatever kernel they go to. What is made
of them is fopru's own: `TowerPass` and `pruned_image`, as where transformers runs the tower.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from vllm import __version__
from vllm.distributed import tensor_model_parallel_all_gather

from fopru.choosing import pruned_image
from fopru.encoding import VISION, EncodedImage, TowerPass
from fopru.families import Grid, UnsupportedModelError
from fopru.pruner import Pruner
from fopru.serving.vllm.processing import NAME
from fopru.serving.vllm.settings import (
    adapter,
    budgeted,
    check_blocks,
    check_engine,
    default,
    pruner_of,
)
from fopru.tapping import Attention


class Pruned:
    """Mixin of one of vLLM's models: its pictures keep their budget of visual tokens.

    Raises:
        ValueError: The engine's settings are bad, or cannot be served.
    """

    def __init__(self, *, vllm_config: Any, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        lora = vllm_config.lora_config
        if lora is not None and lora.enable_tower_connector_lora:
            raise UnsupportedModelError(
                "fopru: enable_tower_connector_lora counts the kept tokens as those that the tower "
                "sees: adapt the language model alone."
            )
        if vllm_config.model_config.multimodal_config.mm_encoder_tp_mode == "data":
            raise UnsupportedModelError(
                'fopru: mm_encoder_tp_mode="data" gives each rank other pictures, and all of them '
                'have to keep the same tokens: use "weights".'
            )
        self.family = adapter(self.config)
        self.noted: dict[int, tuple[Tensor, Tensor]] = {}
        self.projected: list[Tensor] = []
        self.hooks: list[RemovableHandle] = []
        self.use(pruner_of(default(self.config)))

    def use(self, pruner: Pruner) -> None:
        """Prune by this pruner from here on: note what it reads, and nothing else."""
        check_engine(pruner, self.family, __version__)
        self.pruner, self.taps = pruner, pruner.taps(self.family)
        while self.hooks:
            self.hooks.pop().remove()
        layers = self.attention_layers()
        self.blocks = check_blocks(pruner, self.taps, len(layers))
        for block in self.blocks:
            attention, note = layers[block].attn, partial(self._note, block)
            self.hooks.append(attention.register_forward_pre_hook(note, with_kwargs=True))
        if VISION in self.taps:
            self.hooks.append(self.projector().register_forward_pre_hook(self._note_projected))

    def attention_layers(self) -> Sequence[nn.Module]:
        """Return the attention layers of the vision tower's blocks, first to last."""
        raise NotImplementedError

    def projector(self) -> nn.Module:
        """Return what takes the tower's features to the language model's width."""
        return self.multi_modal_projector

    def tiles(self, seen: Mapping[str, Any]) -> Tensor | slice:
        """Return which of the tiles that the tower saw belong to pictures."""
        return slice(None)

    def attention(self, query: Tensor, key: Tensor, scale: float, seen: Mapping) -> list[Attention]:
        """Return the calls of one attention layer, from (tiles, h, T, d) of all pictures."""
        return [Attention(query, key, scale)]

    def _note(self, block: int, module: nn.Module, args: Any, kwargs: Any) -> None:
        named = dict(zip(("query", "key"), args, strict=False)) | kwargs
        self.noted[block] = (named["query"], named["key"])

    def _note_projected(self, module: nn.Module, args: Any) -> None:
        self.projected.append(args[0])

    def _calls(self, block: int, seen: Mapping[str, Any]) -> list[Attention]:
        if block not in self.noted:
            raise UnsupportedModelError(
                f"fopru: block {block} of vLLM's {type(self).__name__} did not go through its "
                f"attention layer, so that there is nothing to score tokens by (vLLM "
                f"{__version__}): start it without what replaces the vision tower, as CUDA graphs "
                "of the encoder or its compilation."
            )
        layer = self.attention_layers()[block]
        found = []
        for x in self.noted[block]:
            if x.dim() == 3:
                x = x.unflatten(-1, (layer.attn.num_heads, -1))  # (tiles, T, h, d)
            if layer.tp_size > 1:  # all ranks must keep the same tokens
                x = tensor_model_parallel_all_gather(x.contiguous(), dim=2)
            found.append(x[self.tiles(seen)].transpose(1, 2))
        return self.attention(*found, layer.attn.scale, seen)

    def images(self, tokens: list[Tensor], seen: Mapping[str, Any]) -> tuple[EncodedImage, ...]:
        """Return the pictures that the tower saw last, as pruners get them.

        Args:
            tokens: (N, d) per picture, as the language model would get them; deep features, where
                there are any, stand behind them.
            seen: What transformers' processor made of the pictures.
        """
        grids: list[Grid] = self.family.grids(seen)
        output = self.family.encoder_outputs(tokens)[self.family.modality]
        calls = {block: self._calls(block, seen) for block in self.blocks}
        samples = [0] * len(grids)
        vision = [torch.cat(self.projected)[self.tiles(seen)]] if self.projected else []
        whole = [None] * len(grids)
        tower = TowerPass(
            self.family, seen, grids, samples, output, self.taps, calls, vision, whole
        )
        return tower.scored().images

    def kept(self, images: Sequence[EncodedImage], budgets: Tensor) -> list[Tensor]:
        """Return the places that each picture keeps, from its row of `budgets`."""
        pairs = zip(images, budgets.cpu(), strict=True)
        return [pruned_image(budgeted(self.pruner, own), image)[0].kept for image, own in pairs]

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Return the kept visual tokens of each picture, (k, d)."""
        budgets = kwargs.pop(NAME, None)
        self.noted.clear()
        self.projected.clear()
        features = super().embed_multimodal(**kwargs)
        if budgets is None:
            raise ValueError("fopru: pictures came without a budget: another processor made them.")
        places = self.kept(self.images(list(features), kwargs), budgets)
        self.noted.clear()
        self.projected.clear()
        kept = [x[there.to(x.device)] for x, there in zip(features, places, strict=True)]
        return tuple(kept)
