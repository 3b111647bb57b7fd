"""Kept tokens speak for those they replace: the language model attends to each by its mass.

A kept token's mass is the number of visual tokens that are most like it, itself included. In
`with pruner(model)` the attention logits on its key get the logarithm of that, in every layer and
for every later query, as if it stood there that many times at one position. Sources: proportional
attention in ToMe (arXiv 2210.09461, section 3) and DyMU (arXiv 2504.17040), there for merged
tokens.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fopru.families import Family

WEIGHTS = ("none", "mass")
KERNELS = ("sdpa", "eager")
"""Attention that takes a bias."""


@dataclass
class Bias:
    """What is added to the attention logits of the prompts under way."""

    logs: Tensor | None = None
    """(B, L) logarithms of the masses of a prompt's tokens, 0 for text; None adds nothing."""
    layers: Collection[int] | None = None
    """The layers that get it; None is all."""
    seen: dict[int, int] = field(default_factory=dict)
    """Per layer with a sliding window, the tokens that have gone through it."""
    made: tuple[Tensor | None, tuple[int, ...], Tensor] | None = field(default=None, repr=False)
    """A mask, the size it was for, and what came of it: the layers of one pass share them."""

    def of(self, family: Family, ids: Tensor, mass: list[Tensor]) -> None:
        """Take the masses of each picture for the prompts `ids`, (B, L)."""
        self.forget()
        if any((m > 1).any() for m in mass):
            logs = torch.zeros(ids.shape, device=ids.device)
            logs[ids == family.image_token_id] = torch.cat(mass).to(ids.device).float().log()
            self.logs = logs

    def forget(self) -> None:
        """Add nothing from here on."""
        self.logs = self.made = None
        self.seen.clear()

    def rows(self, index: Tensor) -> None:
        """Go on with these rows of the batch."""
        if self.logs is not None:
            self.logs, self.made = self.logs[index.to(self.logs.device)], None

    def on(self, mask: Tensor | None, module: nn.Module, query: Tensor, key: Tensor):
        """A layer's mask with the bias, (B, 1, Q, K)."""
        if self.logs is None or (self.layers is not None and module.layer_idx not in self.layers):
            return mask
        queries, length = query.shape[2], key.shape[2]
        size = (len(query), queries, length, self._first_key(module, queries, length))
        made = self.made
        if made is None or made[0] is not mask or made[1] != size or made[2].device != query.device:
            self.made = (mask, size, self._added(mask, size, query))
        return self.made[2]

    def _first_key(self, module: nn.Module, queries: int, length: int) -> int:
        """The place in the prompt of a layer's first key: its cache drops what left the window."""
        if getattr(module, "sliding_window", None) is None:
            return 0
        before = 0 if queries == length else self.seen.get(module.layer_idx, 0)
        seen = self.seen[module.layer_idx] = before + queries
        return max(0, seen - length)

    def _added(self, mask: Tensor | None, size: tuple[int, ...], like: Tensor) -> Tensor:
        rows, queries, length, start = size
        logs = F.pad(self.logs, (0, max(0, start + length - self.logs.shape[1])))
        logs = logs[:, start : start + length]  # (B, K)
        logs = logs.repeat_interleave(rows // len(logs), 0)[:, None, None].to(like)
        if mask is None and queries == 1:
            return logs
        if mask is None:  # what SDPA calls causal: query i sees the first i + 1 keys
            places = torch.arange(length, device=like.device)
            mask = places <= places[:queries, None]  # (Q, K)
        if mask.dtype == torch.bool:
            return logs.expand(-1, -1, queries, -1).masked_fill(~mask, _least(like))
        return mask[..., :length] + logs


def _least(like: Tensor) -> float:
    return torch.finfo(like.dtype).min


_AT_WORK: dict[int, Bias] = {}
"""id of a decoder's config -> its bias: not of a thread, since generate may run in another."""


def _register(implementation: str) -> str:
    """Register the weighted twin of an attention implementation; its name."""
    name = f"fopru_weighted_{implementation}"
    if name in ALL_ATTENTION_FUNCTIONS.valid_keys():
        return name

    def attention(module, query, key, value, attention_mask=None, **kwargs: Any):
        if implementation == "eager":  # each modeling file has its own
            attend = sys.modules[type(module).__module__].eager_attention_forward
        else:
            attend = ALL_ATTENTION_FUNCTIONS[implementation]
        mask = _AT_WORK[id(module.config)].on(attention_mask, module, query, key)
        return attend(module, query, key, value, mask, **kwargs)

    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[implementation])
    AttentionInterface.register(name, attention)
    return name


@contextmanager
def weighted(family: Family, layers: Collection[int] | None = None) -> Iterator[Bias]:
    """Within the block the decoder's attention adds a bias, nothing until it is given one.

    Raises:
        ValueError: the decoder attends through a kernel that takes no bias.
    """
    config = family.decoder.config
    implementation = config._attn_implementation
    if implementation not in KERNELS:
        raise ValueError(
            f"weights='mass': attention {implementation!r} takes no bias on its logits; load the "
            f"model with attn_implementation={' or '.join(map(repr, KERNELS))}."
        )
    bias = _AT_WORK[id(config)] = Bias(layers=layers)
    config._attn_implementation = _register(implementation)
    try:
        yield bias
    finally:
        config._attn_implementation = implementation
        del _AT_WORK[id(config)]


def starts_anew(kwargs: Mapping[str, Any]) -> bool:
    """Whether a forward call begins a prompt without pictures."""
    cache = kwargs.get("past_key_values")
    empty = cache is None or cache.get_seq_length() == 0
    return empty and not kwargs.get("mm_encoder_outputs")
