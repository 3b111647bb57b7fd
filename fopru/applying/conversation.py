"""What is known of a prompt that was pruned, kept with its KV cache.

The next forward pass on that cache needs it: which columns of the caller's mask are left, what each
key weighs, at which position the sequence goes on. It is an attribute of the cache, so that several
conversations with one model can take turns, in one thread or in many, and a copy of the cache is a
conversation of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

NAMES = ("cache", "past_key_values")
"""The names that transformers gives the KV cache: the first from 5.24 on, the second before."""


@dataclass(frozen=True, eq=False)
class Conversation:
    """What is known of a prompt of B rows and L tokens, of which P are in the KV cache."""

    mask: Tensor
    """(B, P) int64: the weight of each key, 0 for padding."""
    positions: Tensor | None
    """(..., B, P) position ids, or None where the model numbers the tokens itself."""
    columns: Tensor | None = None
    """(B, P) int64: the column of the whole prompt that each key comes from, or None where the
    caller gave the shorter prompt himself."""
    length: int = 0
    """L, the number of tokens in each row of the whole prompt."""

    def rows(self, index: Tensor) -> Conversation:
        """Return the conversation of some rows of the batch, in the order of `index`."""

        def picked(table: Tensor | None, dim: int) -> Tensor | None:
            return None if table is None else table.index_select(dim, index.to(table.device))

        return replace(
            self,
            mask=picked(self.mask, 0),
            positions=picked(self.positions, -2),
            columns=picked(self.columns, 0),
        )

    @property
    def n_rows(self) -> int:
        """B, the number of rows."""
        return len(self.mask)

    def short(self, table: Tensor) -> Tensor:
        """Drop the columns that were pruned: (B, L + n) values become (B, P + n)."""
        if self.columns is None:
            return table
        return torch.cat(
            [table[:, : self.length].gather(1, self.columns), table[:, self.length :]], 1
        )

    def go_on(self, kwargs: Mapping[str, Any], past: int, new: int) -> dict[str, Any]:
        """Return the arguments of a call that adds `new` tokens to the `past` ones in the KV cache.

        A mask that counts the whole prompt loses the columns that are gone; one that is left out is
        made where the prompt was padded or weighted. Position ids that are left out go on where the
        pruned prompt ended.

        Raises:
            ValueError: the mask has the length of neither the whole nor the pruned sequence.
        """
        kwargs = dict(kwargs)
        total, mask = past + new, kwargs.get("attention_mask")
        if mask is None:
            if bool((self.mask != 1).any()):
                kwargs["attention_mask"] = self._weighed(self.mask.new_ones(len(self.mask), total))
        elif isinstance(mask, Tensor) and mask.dim() == 2:
            whole = self.length + total - self.mask.shape[1]
            if self.columns is not None and mask.shape[1] == whole != total:
                mask = self.short(mask)
            if mask.shape[1] != total:
                raise ValueError(
                    f"attention_mask of {mask.shape[1]} columns: the KV cache holds {past} tokens "
                    f"of a pruned prompt and {new} are new, so that it has {total} columns, or "
                    f"{whole} if it counts the tokens that were pruned."
                )
            kwargs["attention_mask"] = self._weighed(mask)
        if kwargs.get("position_ids") is None and self.positions is not None:
            ahead = torch.arange(past - self.mask.shape[1], total - self.mask.shape[1]) + 1
            last = self.last
            kwargs["position_ids"] = last + ahead.to(last.device)
        return kwargs

    @property
    def last(self) -> Tensor:
        """(..., B, 1) position ids at which the prompt ended: with M-RoPE the largest of time,
        height and width for all three, as the models themselves count on."""
        last = self.positions.amax(-1, keepdim=True)
        if last.dim() == 3:
            last[-3:] = last[-3:].amax(0)  # frames of a slow video may be ahead of the text
        return last

    def _weighed(self, mask: Tensor) -> Tensor:
        """Return a mask (B, P + n), or its beginning, with the weights of the prompt's keys."""
        mask = mask.to(self.mask.device)
        prompt = self.mask[:, : mask.shape[1]]
        shown = mask[:, : prompt.shape[1]].clamp(max=1).to(prompt.dtype)
        return torch.cat([shown * prompt, mask[:, prompt.shape[1] :].to(prompt.dtype)], 1)


def fitted(known: Any, rows: int) -> Any:
    """Repeat what is known of a prompt for a larger batch, as beams and several sequences need it.

    Raises:
        ValueError: the number of rows is no multiple of the prompt's.
    """
    times, rest = divmod(rows, known.n_rows)
    if rest:
        raise ValueError(
            f"a batch of {rows} rows goes on with a KV cache whose pruned prompt had "
            f"{known.n_rows}: give each prompt's rows, or use fopru.applying.select_rows."
        )
    return known if times == 1 else known.rows(torch.arange(known.n_rows).repeat_interleave(times))


def cache_of(named: Any) -> Cache | None:
    """Find the KV cache among the arguments of a call, or in a model's output."""
    if isinstance(named, tuple):
        return next((value for value in named if isinstance(value, Cache)), None)
    for name in NAMES:
        if (cache := named.get(name)) is not None:
            return cache
    return None


def cache_name(model: PreTrainedModel) -> str:
    """Return the name of the argument of the model's `forward` that takes the KV cache."""
    names = inspect.signature(model.forward).parameters
    return next(name for name in NAMES if name in names)


def n_past(cache: Cache | None) -> int:
    """Return the number of tokens in a KV cache, 0 for None."""
    return 0 if cache is None else int(cache.get_seq_length())


def conversation(cache: Cache | None, kind: type = object) -> Any:
    """Return what a pruner noted of the prompt in a KV cache, or None where no pruner did.

    Raises:
        ValueError: a pruner of another kind did, and this one cannot go on for it.
    """
    noted = getattr(cache, "_fopru", None)
    if noted is not None and not isinstance(noted, kind):
        raise ValueError(
            "the KV cache holds a prompt that a pruner of another kind shortened (before the "
            "language model or inside it): go on with it in a block of that pruner."
        )
    return noted


def mark(cache: Cache | None, noted: Any) -> None:
    """Note something about the prompt in a KV cache, in place of what was noted before."""
    if cache is not None:
        cache._fopru = noted


def select_rows(cache: Cache, index: Tensor) -> None:
    """Keep some rows of a KV cache, and what is known of their prompts, in a new order.

    Args:
        cache: The KV cache of a prompt that was pruned; it is changed in place.
        index: (R,) int64: the rows to keep, in their new order. A row may stand there several
            times.
    """
    cache.reorder_cache(index)  # the one way that states of linear attention know, too
    if (noted := conversation(cache)) is not None:
        mark(cache, noted.rows(index))
