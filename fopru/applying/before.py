"""Tokens leave before the language model: its prompt is shorter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from fopru.applying.callables import WholePrompts
from fopru.applying.conversation import Conversation, cache_of, conversation, fitted, mark, n_past
from fopru.applying.session import During, Session, at_once, inferred_mask, option
from fopru.applying.weights import by_distance, check, stated
from fopru.attention import twinned, weighing
from fopru.choosing import pruned_images
from fopru.encoding import Encoded, encode
from fopru.pruned import PrunedInputs, numbered, shortened
from fopru.versions import CHUNKS, INSTALLED


class Before(Session):
    """The session of a method that shortens the prompt, its kept tokens weighted or not.

    `generate` sees the shorter prompt. What of the caller's sees token ids (stopping criteria,
    logits processors, `prefix_allowed_tokens_fn`, streamers) sees them with the whole prompt in
    front, and so do the sequences that come back, so code for the unpruned model keeps working.
    Logits of a direct call have the shorter length. Weights travel in the attention mask, whose
    values are then what each key weighs: so they follow their rows through beams and caches. Those
    that depend on distances (weights="restore") are made of these values in each forward pass.

    Raises:
        UnsupportedModelError: there is no adapter for the model; or weights="restore", and its
            layers do not share one rotary embedding.
        ValueError: weights that are not "none", and an attention kernel whose logits take no bias.
    """

    shortens = True

    def __init__(self, pruner: Any, model: PreTrainedModel):
        super().__init__(pruner, model)
        self.weighs = pruner.weights != "none" and pruner.retention != 1
        if self.weighs:
            check(pruner.weights, self.family)

    @property
    def kept(self) -> list[Tensor]:
        """Return the tokens that were kept of each row of the last prompt; see `Session.kept`."""
        if self.last is None:
            return []
        rows: list[list[Tensor]] = [[] for _ in range(len(self.last["input_ids"]))]
        starts = [0] * len(rows)
        for image in self.last.images:
            rows[image.sample].append(image.kept + starts[image.sample])
            starts[image.sample] += image.n_full
        none = torch.zeros(0, dtype=torch.int64)
        return [torch.cat(row) if row else none for row in rows]

    def changes(self) -> AbstractContextManager[None]:
        """Let the language model attend through its twin where kept tokens are weighted."""
        return twinned(self.family.decoder.config) if self.weighs else nullcontext()

    def arguments(self, encoded: Encoded, during: During = at_once) -> PrunedInputs:
        """Choose what is kept and return the shorter inputs; see `Session.arguments`."""
        chosen = during("selection", lambda: pruned_images(self.pruner, encoded))
        pruned = during("compaction", lambda: self._shortened(encoded, *chosen))
        self.last = pruned  # another thread's may take its place before this one returns
        return pruned

    def _shortened(self, encoded: Encoded, *chosen: Any) -> PrunedInputs:
        pruned = shortened(encoded, *chosen, self.pruner.numbering(encoded.family))
        return self._weighted(pruned) if self.weighs else pruned

    def _weighted(self, pruned: PrunedInputs) -> PrunedInputs:
        """Return the inputs with the weight of each key as the value of the attention mask."""
        text = {name: pruned[name] for name in pruned if name != "mm_encoder_outputs"}
        mask = text["attention_mask"].long()  # a mask of bool has no room for weights
        if text.get("position_ids") is None:  # else made from the mask, whose values they are not
            text["position_ids"] = numbered(mask)
        visual = text["input_ids"] == pruned.family.image_token_id
        text["attention_mask"] = stated(self.pruner.weights, mask, visual, pruned.images)
        return PrunedInputs(text, pruned.family, pruned.features, pruned.images, pruned.columns)

    def _pruned(self, kwargs: dict[str, Any]) -> PrunedInputs:
        """Take the model's inputs out of the arguments of a call, and prune them."""
        names = [name for name in self.names() if name in kwargs]
        return self.arguments(
            encode(self.model, {name: kwargs.pop(name) for name in names}, [self.pruner])
        )

    # generate

    def generate(self, generate: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        """Run `generate` on the shorter prompt, or on the KV cache of one that was pruned
        before."""
        if self.generating:  # a model that drafts for itself
            return generate(**kwargs)
        cache, config = cache_of(kwargs), self._config(kwargs)
        known = conversation(cache, Conversation) if n_past(cache) else None
        if known is None and not self.shows(kwargs):
            given = kwargs.get("position_ids") is not None and kwargs.get("mm_encoder_outputs")
            with self.in_generate(_conversation(kwargs) if given else None):
                return generate(**kwargs)
        self._refuse_gaps_without_cache(config, kwargs)
        _refuse_chunks(config, kwargs)
        prompt = kwargs["input_ids"]
        if known is None:
            self._refuse_pictures_in(cache, prompt)
            if kwargs.get("attention_mask") is None:
                kwargs["attention_mask"] = inferred_mask(prompt, config, kwargs)
            pruned = self._pruned(kwargs)
            kwargs |= dict(pruned)
            known = _conversation(pruned, pruned.columns, prompt.shape[1])
            if known.positions is None:  # generate counts them in the mask
                known = replace(known, positions=numbered(known.mask))
        else:
            kwargs = self._resumed(fitted(known, len(prompt)), kwargs, n_past(cache))
        whole = WholePrompts(prompt, kwargs["input_ids"].shape[1])
        kwargs |= _shorter_lengths(config, kwargs, prompt.shape[1] - whole.short)
        kwargs |= whole.callables(kwargs)
        with self.in_generate(known):
            output = generate(**kwargs)
        if isinstance(output, Tensor):
            return whole(output)
        output.sequences = whole(output.sequences)
        return output

    def _config(self, kwargs: Mapping[str, Any]) -> GenerationConfig:
        return kwargs.get("generation_config") or self.model.generation_config

    def _refuse_gaps_without_cache(
        self, config: GenerationConfig, kwargs: Mapping[str, Any]
    ) -> None:
        if option("use_cache", config, kwargs) is not False:
            return
        if self.pruner.numbering(self.family) == "preserve":
            raise ValueError(
                "positions='preserve' with use_cache=False: without its cache, transformers' "
                "generate drops the attention mask and reads the gaps in position_ids as borders "
                "between packed sequences. Use the cache, or positions='reindex'."
            )

    def _refuse_pictures_in(self, cache: Any, prompt: Tensor) -> None:
        past = n_past(cache)
        if past and bool(self.visual(prompt[:, :past]).any()):
            raise ValueError(
                f"the KV cache holds {past} tokens of this prompt with pictures among them, and "
                "they were not pruned: prune a prompt from its first picture on, or leave the "
                "cache out."
            )

    def _resumed(self, known: Conversation, kwargs: dict[str, Any], past: int) -> dict[str, Any]:
        """Return the arguments of `generate` for another turn on the KV cache of a pruned
        prompt."""
        ids = kwargs["input_ids"]
        whole = known.length + past - known.mask.shape[1]
        history = known.columns is not None and ids.shape[1] > whole
        new = ids[:, whole:] if history else ids
        if history:
            ids = kwargs["input_ids"] = known.short(ids)
        elif ids.shape[1] > past:  # the shorter prompt, which the caller has made himself
            new, history = ids[:, past:], True
        self._refuse_new_pictures(new, kwargs if not history else {})
        for name in (*self.names(), "mm_encoder_outputs"):
            if name not in ("input_ids", "attention_mask", "position_ids"):
                kwargs.pop(name, None)  # of the pictures, which are in the cache
        own_positions = kwargs.get("position_ids")
        kwargs = known.go_on(kwargs, past, new.shape[1])
        if kwargs.get("attention_mask") is None:
            total = past + new.shape[1]
            kwargs["attention_mask"] = known.mask.new_ones(len(ids), total)
        if history and own_positions is None and known.positions is not None:
            between = past - known.mask.shape[1]
            middle = known.last + torch.arange(1, between + 1, device=known.positions.device)
            kwargs["position_ids"] = torch.cat(
                [known.positions, middle, kwargs["position_ids"]], -1
            )
        return kwargs

    def _refuse_new_pictures(self, ids: Tensor, kwargs: Mapping[str, Any]) -> None:
        if self.shows(kwargs) or (ids.shape[1] > 1 and bool(self.visual(ids).any())):
            raise self.misplaced()

    # forward

    def forward(self, forward: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        """Run `forward` on the shorter prompt, or on the KV cache of one that was pruned before."""
        cache, ids = cache_of(kwargs), kwargs.get("input_ids")
        past, known = n_past(cache), None
        if past:
            if not self.generating and self.shows(kwargs):
                self._refuse_new_pictures(ids, kwargs)
            known = conversation(cache, Conversation)
            if known is None and kwargs.get("mm_encoder_outputs"):  # behind text that was cached
                known = self.conversation
            if known is not None and ids is not None:
                kwargs = fitted(known, len(ids)).go_on(kwargs, past, ids.shape[1])
        elif self.shows(kwargs) and not self.generating:
            pruned = self._pruned(kwargs)
            kwargs = dict(pruned) | kwargs
            known = _conversation(pruned, pruned.columns, ids.shape[1])
        elif kwargs.get("mm_encoder_outputs"):
            known = self.conversation
            known = fitted(known, len(ids)) if known is not None else _conversation(kwargs)
        with self._weighing(kwargs, known):
            output = forward(**kwargs)
        mark(cache_of(output) or cache, known)
        return output

    def prepare(self, prepare: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        """Weigh the keys while transformers prepares a step; a static cache makes its masks
        there."""
        with weighing(self._weights(kwargs, None)):
            prepared = prepare(**kwargs)
        if isinstance(masks := prepared.get("attention_mask"), dict):  # one for each kind of layer
            prepared["attention_mask"] = {
                kind: mask if _two_dimensional(mask) is None else mask.clamp(max=1)
                for kind, mask in masks.items()
            }
        return prepared

    def _weighing(
        self, kwargs: dict[str, Any], known: Conversation | None
    ) -> AbstractContextManager[None]:
        """Weigh the keys by the mask's values, and leave a mask of ones and zeros to the model."""
        mask = _two_dimensional(kwargs.get("attention_mask"))
        if mask is None or not self.weighs or mask.dtype == torch.bool:
            return nullcontext()
        weights = self._weights(kwargs, known, self.family.counts_from if self.generating else 0)
        kwargs["attention_mask"] = mask.clamp(max=1)
        return weighing(weights)

    def _weights(
        self, kwargs: Mapping[str, Any], known: Conversation | None, first: int = 0
    ) -> Tensor | None:
        """Return what the keys weigh in this call, (B, K), or (B, Q, K) by their distances; `first`
        is where its position ids begin."""
        mask = _two_dimensional(kwargs.get("attention_mask"))
        if mask is None or self.pruner.weights != "restore" or not bool((mask > 1).any()):
            return mask
        known = known or self.conversation  # a model that drafts for itself sees no picture
        places = None if known is None else fitted(known, len(mask)).positions
        queries = kwargs.get("position_ids")
        if places is None or queries is None:
            raise ValueError(
                f"weights={self.pruner.weights!r}: attention_mask holds weights of a pruned "
                "prompt, and its position_ids are not known: give them with it, or go on with the "
                "KV cache that the model returned."
            )
        new = mask.shape[1] - n_past(cache_of(kwargs))
        return by_distance(self.family.decoder, mask, places + first, queries[..., -new:])


def _two_dimensional(mask: Any) -> Tensor | None:
    return mask if isinstance(mask, Tensor) and mask.dim() == 2 else None


def _conversation(
    inputs: Mapping[str, Any], columns: Tensor | None = None, length: int = 0
) -> Conversation:
    ids, mask = inputs["input_ids"], _two_dimensional(inputs.get("attention_mask"))
    mask = torch.ones_like(ids) if mask is None else mask.to(torch.int64)
    return Conversation(mask, inputs.get("position_ids"), columns, length)


def _refuse_chunks(config: GenerationConfig, kwargs: Mapping[str, Any]) -> None:
    size = option("prefill_chunk_size", config, kwargs)
    if size and INSTALLED < CHUNKS:
        raise ValueError(
            f"prefill_chunk_size={size}: transformers {INSTALLED} puts chunks to wrong "
            f"places in a picture; leave it out, or install {CHUNKS} or newer."
        )


def _shorter_lengths(
    config: GenerationConfig, kwargs: Mapping[str, Any], removed: int
) -> dict[str, int]:
    """`max_length` and `min_length` count the prompt: take off what pruning removed."""
    lengths = {name: option(name, config, kwargs) for name in ("max_length", "min_length")}
    return {name: max(value - removed, 0) for name, value in lengths.items() if value}
