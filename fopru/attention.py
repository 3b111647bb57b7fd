"""The attention of a model, seen and weighed while it runs.

transformers lets an attention function be registered under a name of its own. Each implementation
gets one twin here (`fopru_sdpa` stands for `sdpa`), set on one config and only while it is needed.
The twin hands on to the real one, so the model keeps its fast kernels and its exact output. On the
way it can do two things, both only for the forward pass in whose thread they were asked for:

- tell a listener the queries and keys of each call (`heard`);
- add the logarithm of a weight to the attention logits on each key (`weighing`).
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fopru.versions import moved

KERNELS = ("sdpa", "eager")
"""The attention implementations whose logits take a bias."""

_LISTENER: ContextVar[Callable[..., None] | None] = ContextVar("fopru_listener", default=None)
_WEIGHTS: ContextVar[Tensor | None] = ContextVar("fopru_weights", default=None)


@contextmanager
def heard(listener: Callable[..., None]) -> Iterator[None]:
    """Within the block, call `listener(module, query, key, value, mask, **kwargs)` before each
    attention of this thread that runs through a twin."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


@contextmanager
def weighing(weights: Tensor | None) -> Iterator[None]:
    """Within the block, masks that this thread makes through a twin weigh the keys.

    Args:
        weights: (B, K) one weight for each key from the first of the sequence on, at least 1 (0 for
            padding), or (B, Q, K) one for each query and key; keys after the last one have weight
            1. None adds nothing, and neither do weights of 1: masks are then the model's own.
    """
    token = _WEIGHTS.set(weights if weights is not None and bool((weights > 1).any()) else None)
    try:
        yield
    finally:
        _WEIGHTS.reset(token)


_SET: dict[int, list[Any]] = {}
"""The configs that are changed at the moment: the id of each -> the config, the implementation that
it had, and how many blocks want its twin, since models may share a config, and threads a model."""
_GUARD = threading.Lock()


@contextmanager
def twinned(config: PreTrainedConfig) -> Iterator[None]:
    """Within the block, whatever reads this config attends through the twin."""
    with _GUARD:
        entry = _SET.setdefault(id(config), [config, config._attn_implementation, 0])
        entry[2] += 1
        config._attn_implementation = _registered(entry[1])
    try:
        yield
    finally:
        with _GUARD:
            entry[2] -= 1
            if not entry[2]:
                config._attn_implementation = entry[1]
                del _SET[id(config)]


def implementation(config: PreTrainedConfig) -> str:
    """Return the attention that a config asks for, whether or not its twin stands in for it."""
    return config._attn_implementation.removeprefix("fopru_")


def _registered(implementation: str) -> str:
    """Register the twin of an attention implementation, and return its name.

    The name contains the original's, since transformers asks whether "flash" is in it.
    """
    name = f"fopru_{implementation}"
    if name in ALL_ATTENTION_FUNCTIONS.valid_keys():
        return name

    def attention(module: nn.Module, query: Tensor, key: Tensor, *args: Any, **kwargs: Any):
        if (listener := _LISTENER.get()) is not None:
            listener(module, query, key, *args, **kwargs)
        return _attend(implementation, module)(module, query, key, *args, **kwargs)

    if implementation in ALL_MASK_ATTENTION_FUNCTIONS.valid_keys():
        plain = ALL_MASK_ATTENTION_FUNCTIONS[implementation]

        def mask(*args: Any, **kwargs: Any) -> Any:
            weights = _WEIGHTS.get()
            if getattr(kwargs.get("config"), "num_kv_shared_layers", 0):
                # where there is no mask, transformers cuts queries before layers that share keys,
                # and only under the name "sdpa" knows when it may not
                kwargs |= {"allow_is_causal_skip": False}
            return plain(*args, **kwargs) if weights is None else _weighed(plain, weights, kwargs)

        AttentionMaskInterface.register(name, mask)
    AttentionInterface.register(name, attention)
    return name


def _attend(implementation: str, module: nn.Module) -> Callable[..., Any]:
    if implementation != "eager":
        return ALL_ATTENTION_FUNCTIONS[implementation]
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if eager is None:  # each modeling file has its own
        raise moved(f"{type(module).__name__} has no eager_attention_forward in its module")
    return eager


def _weighed(plain: Callable[..., Tensor], weights: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """Return the mask that `plain` makes, (B, 1, Q, K), with the logarithms of the weights added.

    transformers says where a layer's keys lie in the sequence, be its cache static or a window.
    """
    if not {"kv_length", "kv_offset", "dtype"} <= kwargs.keys():
        raise moved("attention masks are made without kv_length, kv_offset and dtype")
    mask = plain(**(kwargs | {"allow_is_causal_skip": False}))
    start, length, dtype = kwargs["kv_offset"], kwargs["kv_length"], kwargs["dtype"]
    weights = F.pad(weights, (0, max(0, start + length - weights.shape[-1])), value=1)
    weights = weights[..., start : start + length].to(mask.device)
    logs = weights.clamp(min=1).float().log().to(dtype)
    logs = logs[:, None] if logs.dim() == 3 else logs[:, None, None]  # (B, 1, Q or 1, K)
    if mask.dtype == torch.bool:
        return logs.expand(mask.shape).masked_fill(~mask, torch.finfo(dtype).min)
    return mask + logs
