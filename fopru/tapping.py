"""A look into the attention layers of a vision tower while it runs.

The tapped blocks' queries and keys are noted on their way (`fopru.attention`); the tower keeps its
fast kernels and its exact output.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fopru.attention import heard, twinned
from fopru.families import UnsupportedModelError


class Attention(NamedTuple):
    """Queries and keys of one call of an attention layer, for tiles of one size or for one
    picture."""

    query: Tensor  # (tiles, h, T, d)
    key: Tensor
    scaling: float
    visible: Tensor | None = None
    """(tiles, T) bool: False for padding, which no query sees; None where there is none."""


_LOCKS: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_LOCKS_GUARD = threading.Lock()


@contextmanager
def locked(model: nn.Module) -> Iterator[None]:
    """Let one thread at a time into the block: what is changed for one call must not be seen by
    another."""
    with _LOCKS_GUARD:
        lock = _LOCKS.setdefault(model, threading.RLock())
    with lock:
        yield


@contextmanager
def skipped(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """Let these blocks return what they get, within the block: nobody reads what they would make of
    it."""
    own = [(block, block.__dict__.get("forward")) for block in blocks]  # accelerate sets one
    for block, _ in own:
        block.forward = _pass_through
    try:
        yield
    finally:
        for block, forward in own:
            del block.forward
            if forward is not None:
                block.forward = forward


def _pass_through(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return hidden_states


@contextmanager
def tapped(
    tower: PreTrainedModel, blocks: Mapping[int, nn.Module]
) -> Iterator[dict[int, list[Attention]]]:
    """Note the queries and keys of `blocks` within the block: yields index -> calls, filled as they
    run.

    Raises:
        UnsupportedModelError: on leaving, where a block did not run its attention through
            transformers' attention interface, or masked it.
    """
    calls: dict[int, list[Attention]] = {}
    if not blocks:
        yield calls
        return
    owner = {id(module): index for index, block in blocks.items() for module in block.modules()}

    def note(module, query, key, value, attention_mask=None, *, scaling=None, **kwargs):
        if (index := owner.get(id(module))) is None:
            return
        visible, scaling = None, scaling or query.shape[-1] ** -0.5
        pictures = kwargs.get("cu_seq_lens_q")  # FlashAttention gets a whole batch as one sequence
        lengths = [query.shape[2]] if pictures is None else pictures.diff().tolist()
        if attention_mask is not None and not (shown := _shown(attention_mask)).all():
            visible = _visible(shown, len(query))
            if visible is None:  # others than FlashAttention get pictures apart by a mask
                lengths = _lengths(shown)
        if not lengths:
            raise UnsupportedModelError(
                f"{type(tower).__name__} masks the attention of its block {index}, and not the "
                "same for every query, as padding is: there is no way to score its tokens."
            )
        for q, k in zip(query.split(lengths, 2), key.split(lengths, 2), strict=True):
            calls.setdefault(index, []).append(Attention(q, k, scaling, visible))

    with twinned(tower.config), heard(note):
        yield calls
    if missed := blocks.keys() - calls.keys():
        raise UnsupportedModelError(
            f"blocks {sorted(missed)} of {type(tower).__name__} do not attend through "
            "transformers' attention interface: there is no attention to score its tokens by."
        )


@contextmanager
def projected(projector: nn.Module | None) -> Iterator[list[Tensor]]:
    """Note what a projector gets within the block, (tiles, P, d_v) at a time; nothing of None."""
    noted: list[Tensor] = []
    if projector is None:
        yield noted
        return
    thread = threading.get_ident()  # in others, methods may project by themselves

    def note(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        if threading.get_ident() == thread:
            noted.append(next(iter((*args, *kwargs.values()))))

    hook = projector.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield noted
    finally:
        hook.remove()


def _shown(mask: Tensor) -> Tensor:
    """Return the keys that a mask (boolean, of ones, or added to the logits) leaves to queries."""
    return mask.bool() if mask.dim() == 2 or mask.dtype == torch.bool else mask == 0


def _visible(shown: Tensor, tiles: int) -> Tensor | None:
    """(tiles, T) bool: the keys that every query sees, as where there is padding; None where some
    queries see others."""
    if shown.dim() > 2:
        if not torch.equal(shown, shown[:, :1, :1].expand_as(shown)):
            return None
        shown = shown[:, 0, 0]
    return shown.expand(tiles, -1)


def _lengths(shown: Tensor) -> list[int]:
    """Return the lengths of the pictures that a mask (B, 1, T, T) keeps apart in one sequence, each
    of which sees all of itself; none where the mask does anything else."""
    if shown.dim() != 4:
        return []
    first = shown[0, 0].byte().argmax(-1)  # (T,) the first key that each query sees
    apart = bool((first.diff() >= 0).all())
    if not apart or not torch.equal(shown, (first[:, None] == first).expand_as(shown)):
        return []
    return first.unique_consecutive(return_counts=True)[1].tolist()
