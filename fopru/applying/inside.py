"""Tokens leave inside the language model, between two of its layers, at prefill."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from fopru.applying.conversation import cache_of, conversation, fitted, mark, n_past
from fopru.applying.layers import listed, placed
from fopru.applying.passes import AT_HAND, Pass
from fopru.applying.session import During, Session, at_once, option
from fopru.applying.tokens import Layers, LayerTokens, by_row
from fopru.attention import twinned
from fopru.encoding import Encoded
from fopru.families import Grid, UnsupportedModelError, View
from fopru.pruned import PrunedImage, PrunedInputs, whole

DRAFTS = "drafted tokens would stand behind the prompt when tokens are chosen"
REFUSED = {
    "assistant_model": DRAFTS,
    "prompt_lookup_num_tokens": DRAFTS,
    "assistant_early_exit": DRAFTS,
    "prefill_chunk_size": "tokens are chosen by the last one of the whole prompt",
}
"""Options of `generate` that do not go with dropping tokens between layers, each with the
reason."""


class Inside(Session):
    """The session of a method that drops visual tokens inside the language model.

    The prompt stays whole for `generate`; the layers' caches differ in length. Hence no static
    caches, no drafted tokens and no prefill in chunks: each is refused by name.

    Args:
        chosen: Keep what was kept in that session, of prompts on the same pictures row by row: as
            if these prompts were asked on its cache.

    Raises:
        UnsupportedModelError: there is no adapter for the model, its first layers add features to
            visual tokens that the method would drop, or too few of its layers have attention to
            choose tokens by.
    """

    def __init__(self, pruner: Any, model: PreTrainedModel, chosen: Inside | None = None):
        super().__init__(pruner, model)
        self.decoder = self.family.decoder
        self.chosen = chosen
        asked = pruner.stages(len(self.decoder.layers))
        self.stages = placed(asked, self.decoder, pruner.before)
        """Layer that tokens leave on entering it -> share of all visual tokens that go on."""
        if self.stages.keys() != asked.keys():
            warnings.warn(
                f"method {pruner.name!r}: tokens leave on entering layer {listed(self.stages)} of "
                f"{self.family.title} in place of {listed(asked)}, where no attention says which.",
                stacklevel=3,
            )
        self.first = min(self.stages)
        if self.first < self.family.n_deep:
            raise UnsupportedModelError(
                f"method {pruner.name!r} drops tokens on entering layer {self.first}, and layers "
                f"up to {self.family.n_deep - 1} of {self.family.title} add features to all visual "
                "tokens: it is undefined here."
            )
        self._refuse_ties()
        self.reindex = pruner.numbering(self.family) == "reindex"
        self.prompt = Layers(0, [])
        self.encoded: list[Grid] = []
        """The grids of pictures that were encoded before the model gets them."""
        self.hooks: list[int] = []

    def _refuse_ties(self) -> None:
        """Layers that read what was made for all tokens cannot see fewer of them."""
        config, kind = self.decoder.config, type(self.decoder).__name__
        ties = []
        if shared := getattr(config, "num_kv_shared_layers", 0):
            ties.append(f"its last {shared} layers attend to keys and values of earlier ones")
        if getattr(config, "hidden_size_per_layer_input", 0):
            ties.append("each layer gets an input of its own for every token of the prompt")
        if ties:
            raise UnsupportedModelError(
                f"method {self.pruner.name!r} drops tokens between layers, and {kind} does not "
                f"allow for it: {', and '.join(ties)}. Use a method that prunes before the "
                "language model."
            )

    @property
    def layers(self) -> list[LayerTokens]:
        """The tokens of the last prompt with pictures that each layer of the language model saw."""
        return self.prompt.layers

    @property
    def last(self) -> Inside | None:
        """This session, whose `images` say what was kept; None before the first picture."""
        return self if self.layers else None

    @last.setter
    def last(self, nothing: None) -> None:
        """There are no shorter inputs to note."""

    @property
    def kept(self) -> list[Tensor]:
        """Return the visual tokens that the last layer saw of each row; see `Session.kept`."""
        return [tokens.cpu() for tokens in self.prompt.visible(-1)] if self.layers else []

    @property
    def visual_counts(self) -> list[list[int]]:
        """The number of visual tokens that each layer saw: a list of one count per row for each
        layer."""
        return [(s.visual & ~s.dead).sum(1).tolist() for s in self.layers]

    @property
    def layer_weighted(self) -> list[float]:
        """Return the mean over layers of the visual tokens that each saw, one number per row."""
        counts = self.visual_counts
        return [sum(row) / len(counts) for row in zip(*counts, strict=True)]

    @property
    def images(self) -> tuple[PrunedImage, ...]:
        """What the last layer saw of each picture of the last prompt, in the order of the
        prompt."""
        images: list[PrunedImage] = []
        owners = self.prompt.owners(-1) if self.layers else []
        for row, (grids, owner) in enumerate(zip(self.prompt.pictures, owners, strict=True)):
            parts = owner.cpu().split([grid.n_tokens for grid in grids])
            start = 0
            for grid, part in zip(grids, parts, strict=True):
                own = part - start
                kept = (own == torch.arange(len(own))).nonzero().flatten()
                places = torch.searchsorted(kept, own).where(part >= 0, -1)
                images.append(PrunedImage(row, kept, None, grid, places))
                start += grid.n_tokens
        return tuple(images)

    def arguments(self, encoded: Encoded, during: During = at_once) -> PrunedInputs:
        """Return the inputs with all visual tokens: they leave later; see `Session.arguments`."""
        self.encoded = [image.grid for image in encoded.images]
        return during("compaction", lambda: whole(encoded))

    @contextmanager
    def changes(self) -> Iterator[None]:
        """Put a hook before each layer, and let the language model attend through its twin."""
        handles = [
            layer.register_forward_pre_hook(self._entering(i), with_kwargs=True)
            for i, layer in enumerate(self.decoder.layers)
        ]
        self.hooks = [handle.id for handle in handles]
        try:
            with twinned(self.decoder.config):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def clean(self, model: PreTrainedModel) -> None:
        """Take the hooks out of a copy of the model."""
        super().clean(model)
        for layer, hook in zip(self._of(model).layers, self.hooks, strict=True):
            layer._forward_pre_hooks.pop(hook, None)
            layer._forward_pre_hooks_with_kwargs.pop(hook, None)

    def generate(self, generate: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        """Run `generate` on the whole prompt, whose tokens leave between layers."""
        if self.generating or not self.shows(kwargs):
            return generate(**kwargs)
        config = kwargs.get("generation_config") or self.model.generation_config
        refused = {name: option(name, config, kwargs) for name in REFUSED}
        refused = {name: (value, REFUSED[name]) for name, value in refused.items() if value}
        if option("use_cache", config, kwargs) is False:
            refused["use_cache"] = (False, "tokens are chosen once, when the prompt is read")
        for name, (value, reason) in refused.items():
            value = type(value).__name__ if isinstance(value, nn.Module) else repr(value)
            raise ValueError(
                f"{name}={value}: method {self.pruner.name!r} drops tokens between layers of the "
                f"language model, and {reason}. Leave {name} out, or use a method that prunes "
                "before the language model."
            )
        with self.in_generate(self.family.reading(kwargs).grids(kwargs)):
            return generate(**kwargs)

    def forward(self, forward: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        """Run `forward` on a prompt with pictures, or as a step on its KV cache."""
        cache, ids = cache_of(kwargs), kwargs.get("input_ids")
        shown = self.shows(kwargs) or bool(kwargs.get("mm_encoder_outputs"))
        if n_past(cache):
            if not self.generating and self.shows(kwargs):
                raise self.misplaced()
            known = conversation(cache, Layers)
            if known is None and shown:
                raise ValueError(
                    f"the KV cache holds the first {n_past(cache)} tokens of the prompt, and "
                    f"method {self.pruner.name!r} reads prompts whole: leave the cache out."
                )
            if known is None:
                return forward(**kwargs)
            mask = kwargs.get("attention_mask")
            plain = isinstance(mask, Tensor) and mask.dim() == 2
            at_hand = Pass(self, fitted(known, len(ids)), shown=mask if plain else None)
        elif not shown or ids is None:
            output = forward(**kwargs)
            mark(cache_of(output) or cache, None)
            return output
        else:
            at_hand = self._begun(ids, kwargs, cache)
        with at_hand:
            output = forward(**kwargs)
        if at_hand.prefill:
            self.prompt = at_hand.known
            mark(cache_of(output) or cache, at_hand.known)
        return output

    def _begun(self, ids: Tensor, kwargs: Mapping[str, Any], cache: Cache | None) -> Pass:
        """Return the pass of a new prompt with pictures."""
        if kwargs.get("labels") is not None:
            raise ValueError(
                f"labels were given, and method {self.pruner.name!r} shortens the sequence inside "
                "the model: leave them out and compare logits yourself."
            )
        if cache is not None and cache.is_compileable:
            raise ValueError(
                f"a static cache ({type(cache).__name__}) has the same length in all layers, and "
                f"method {self.pruner.name!r} drops tokens between them: use a dynamic cache "
                "(leave cache_implementation out)."
            )
        if self.model.training and any(
            getattr(layer, "gradient_checkpointing", False) for layer in self.decoder.layers
        ):
            raise ValueError(
                f"gradient checkpointing runs layers a second time, and method "
                f"{self.pruner.name!r} chooses tokens between them: turn it off "
                "(model.gradient_checkpointing_disable()) or call model.eval()."
            )
        mask, visual = kwargs.get("attention_mask"), self.visual(ids)
        dead = torch.zeros_like(ids, dtype=torch.bool) if mask is None else mask == 0
        index = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        start = LayerTokens(index, dead, visual, bool(dead.any()), index.where(~dead, -1))
        pictures = self._pictures(kwargs, visual.sum(1).tolist())
        return Pass(self, Layers(ids.shape[1], pictures), start)

    def _pictures(self, kwargs: Mapping[str, Any], totals: list[int]) -> list[list[Grid]]:
        """Return the grids of each row's pictures; where these were encoded elsewhere, as by
        another pruner's `prune`, a row's `totals` visual tokens count as one picture."""
        if self.generating:
            return by_row(self.conversation, totals)
        if self.shows(kwargs):
            return by_row(self.family.reading(kwargs).grids(kwargs), totals)
        try:
            return by_row(self.encoded, totals)
        except ValueError:
            return [[Grid((View(1, n),), flat=True)] if n else [] for n in totals]

    def _entering(self, i: int) -> Callable[..., Any]:
        """Return the hook that stands before layer i."""

        def hook(layer: nn.Module, args: tuple, kwargs: dict[str, Any]):
            at_hand = AT_HAND.get()
            if at_hand is None or at_hand.session is not self:
                return None
            return at_hand.entering(i, layer, args, kwargs)

        return hook

    def _of(self, model: PreTrainedModel) -> PreTrainedModel:
        return type(self.family)(model).decoder
