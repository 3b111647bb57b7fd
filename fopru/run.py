"""`with pruner(model) as run:` prunes whatever goes through the model, and leaves no trace."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from fopru.encoding import encode
from fopru.families import Family
from fopru.pruned import PER_TOKEN, PrunedInputs
from fopru.weights import starts_anew, weighted

if TYPE_CHECKING:
    from fopru.pruner import Pruner

_ACTIVE: WeakSet[nn.Module] = WeakSet()


@contextmanager
def alone(model: nn.Module) -> Iterator[None]:
    """Within the block, one pruner is at work on the model.

    Raises:
        RuntimeError: one is already.
    """
    if model in _ACTIVE:
        raise RuntimeError(
            f"another pruner is at work on this {type(model).__name__}: leave its `with` block."
        )
    _ACTIVE.add(model)
    try:
        yield
    finally:
        _ACTIVE.discard(model)


@dataclass
class Run:
    """What happened inside a `with pruner(model) as run:` block."""

    last: PrunedInputs | None = None
    """What the last call with images was turned into; None before the first."""


@contextmanager
def pruned_model(pruner: Pruner, model: PreTrainedModel) -> Iterator[Run]:
    """Prune every `generate` and `forward` with images until the block is left.

    `generate` is wrapped on this instance only; direct calls of the model are met by a forward
    pre-hook. Calls without images, and steps on a cache, pass through. Generated sequences start
    with the original prompt, so code written for the unpruned model keeps working; logits of a
    direct call have the shorter length. Logits processors and stopping criteria see the shorter
    prompt.

    Raises:
        UnsupportedModelError: no adapter for the model.
        RuntimeError: a pruner is at work on this model already.
        ValueError: weights="mass" and an attention kernel that takes no bias.
    """
    family = Family.of(model)
    run = Run()
    weighs = pruner.weights == "mass" and pruner.retention != 1
    generate = model.generate
    own_generate = model.__dict__.get("generate")  # someone else's wrapper on this instance, if any

    def prune(kwargs: dict[str, Any]) -> PrunedInputs:
        """Take the model's inputs out of a call's arguments and prune them."""
        names = [name for name in _names(family) if name in kwargs]
        encoded = encode(model, {name: kwargs.pop(name) for name in names}, [pruner])
        pruned = run.last = pruner.shortened(encoded, *pruner.choose(encoded))
        if bias is not None:
            bias.of(pruned.family, pruned["input_ids"], [image.mass for image in pruned.images])
        return pruned

    def pruned_generate(*args: Any, **kwargs: Any) -> Any:
        kwargs = by_name(generate, args, kwargs)
        if (ids := kwargs.pop("inputs", None)) is not None:
            kwargs["input_ids"] = ids
        if not _to_prune(kwargs, family):
            return generate(**kwargs)
        config = kwargs.get("generation_config") or model.generation_config
        _refuse_gaps_without_cache(pruner, family, config, kwargs)
        prompt = kwargs["input_ids"]
        pruned = prune(kwargs)
        removed = prompt.shape[1] - pruned["input_ids"].shape[1]
        kwargs |= dict(pruned) | _shorter_lengths(config, kwargs, removed)
        if kwargs.get("streamer") is not None:
            kwargs["streamer"] = _PromptStreamer(kwargs["streamer"], prompt)
        return _with_prompt(generate(**kwargs), prompt, pruned["input_ids"].shape[1])

    def prune_forward(module: nn.Module, args: tuple, kwargs: dict[str, Any]):
        named = by_name(module.forward, args, kwargs)
        if not _to_prune(named, family):
            if bias is not None and starts_anew(named):
                bias.forget()
            return None
        pruned = prune(named)
        family.went_on(pruned)
        return (), dict(pruned) | named

    with alone(model), weighted(family) if weighs else nullcontext() as bias:
        model.generate = pruned_generate
        handle = model.register_forward_pre_hook(prune_forward, prepend=True, with_kwargs=True)
        try:
            yield run
        finally:
            handle.remove()
            del model.generate
            if own_generate is not None:
                model.generate = own_generate


def by_name(function: Callable, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Positional arguments under their names, so that inputs are found wherever they stand."""
    return dict(zip(inspect.signature(function).parameters, args, strict=False)) | kwargs


def _names(family: Family) -> list[str]:
    """What of a call's arguments pruning reads."""
    readers = [family] if family.video is None else [family, family.video]
    pixels = (name for reader in readers for name in (*reader.pixels, *reader.options))
    return [*PER_TOKEN, *pixels, *family.also]


def _to_prune(kwargs: Mapping[str, Any], family: Family) -> bool:
    """Whether these are inputs with images; False passes them through.

    Raises:
        ValueError: a cache is given together with images or their placeholders.
    """
    readers = [family] if family.video is None else [family, family.video]
    images = any(kwargs.get(reader.pixels[0]) is not None for reader in readers)
    cache = kwargs.get("past_key_values")
    if cache is not None and cache.get_seq_length() > 0:
        ids = kwargs.get("input_ids")
        if images or (ids is not None and bool((ids == family.image_token_id).any())):
            raise ValueError(
                "past_key_values already hold a pruned prompt, which is shorter than input_ids "
                "with its image placeholders: continue with the new text tokens only, through the "
                "model's forward, or generate again without past_key_values."
            )
        return False
    return images


def _refuse_gaps_without_cache(
    pruner: Pruner, family: Family, config: GenerationConfig, kwargs: Mapping[str, Any]
) -> None:
    use_cache = kwargs["use_cache"] if kwargs.get("use_cache") is not None else config.use_cache
    if pruner.numbering(family) == "preserve" and use_cache is False:
        raise ValueError(
            "positions='preserve' with use_cache=False: without its cache, transformers' generate "
            "drops the attention mask and reads the gaps in position_ids as borders between packed "
            "sequences. Use the cache, or positions='reindex'."
        )


def _shorter_lengths(
    config: GenerationConfig, kwargs: Mapping[str, Any], removed: int
) -> dict[str, int]:
    """`max_length` and `min_length` count the prompt: take off what pruning removed."""
    lengths = {}
    for name in ("max_length", "min_length"):
        value = kwargs[name] if kwargs.get(name) is not None else getattr(config, name)
        if value:
            lengths[name] = max(value - removed, 0)
    return lengths


def _with_prompt(output: Any, prompt: Tensor, shortened: int) -> Any:
    """Put the original prompt back in front of the generated tokens."""
    sequences = output if isinstance(output, Tensor) else output.sequences  # (B * n, L' + new)
    prompts = prompt.to(sequences.device).repeat_interleave(len(sequences) // len(prompt), dim=0)
    sequences = torch.cat([prompts, sequences[:, shortened:]], dim=1)  # (B * n, L + new)
    if isinstance(output, Tensor):
        return sequences
    output.sequences = sequences
    return output


class _PromptStreamer(BaseStreamer):
    """Shows a streamer the original prompt in place of the shorter one, which comes first."""

    def __init__(self, streamer: BaseStreamer, prompt: Tensor):
        self.streamer = streamer
        self.prompt: Tensor | None = prompt

    def put(self, value: Tensor) -> None:
        if self.prompt is not None:
            value, self.prompt = self.prompt.to(value.device), None
        self.streamer.put(value)

    def end(self) -> None:
        self.streamer.end()
