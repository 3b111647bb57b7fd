"""One forward pass of a model in which tokens leave between layers."""

from __future__ import annotations

from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fopru.applying.layers import LayerCall, waves_at, window
from fopru.attention import heard, implementation
from fopru.families import UnsupportedModelError
from fopru.pruned import line_up


@dataclass(frozen=True, eq=False)
class Sequence:
    """The tokens of the prompt that a layer sees."""

    index: Tensor
    """(B, L') columns of the prompt."""
    dead: Tensor
    """(B, L') bool: padding, of the prompt or because rows keep unequal numbers."""
    visual: Tensor
    """(B, L') bool."""
    padded: bool
    """Whether any is dead."""

    def rows(self, index: Tensor) -> Sequence:
        """Those of these rows of the batch."""
        index = index.to(self.index.device)
        return Sequence(self.index[index], self.dead[index], self.visual[index], self.padded)


@dataclass(eq=False)
class Layers:
    """A prompt of L tokens that lost some between layers: what is kept with its cache."""

    length: int
    """L."""
    layers: list[Sequence] = field(default_factory=list)
    """Per layer of the language model."""

    @property
    def n_rows(self) -> int:
        """Rows of the batch."""
        return len(self.layers[0].index)

    def rows(self, index: Tensor) -> Layers:
        """That of these rows of the batch."""
        done: dict[int, Sequence] = {}
        for layer in self.layers:
            done.setdefault(id(layer), layer.rows(index))
        return Layers(self.length, [done[id(layer)] for layer in self.layers])

    def seen(self, layer: int) -> list[Tensor]:
        """Per row the visual tokens that a layer sees: indices among the row's own."""
        first, there = self.layers[0], self.layers[layer]
        rows = []
        for row in range(len(first.index)):
            visual = first.index[row][first.visual[row]]
            seen = there.index[row][there.visual[row] & ~there.dead[row]]
            rows.append(torch.searchsorted(visual.contiguous(), seen))
        return rows


AT_HAND: ContextVar[Pass | None] = ContextVar("fopru_pass", default=None)
"""The pass that this thread is in."""


class _Enough(Exception):
    """Queries and keys are noted: what the layer would do with them is not needed."""


class Pass:
    """One forward pass: of a prompt with pictures, or of a step on its cache."""

    def __init__(self, session: Any, known: Layers, current: Sequence | None = None):
        self.session, self.known = session, known
        self.pruner, self.decoder = session.pruner, session.decoder
        self.prefill = current is not None
        self.current = current
        self.totals = [] if current is None else current.visual.sum(1).tolist()
        self.heard: tuple[Tensor, Tensor, float] | None = None
        self.listening: nn.Module | None = None
        self.made: dict[Any, Any] = {}
        """Masks and rotary embeddings of this pass: layers that see the same share them."""

    def __enter__(self) -> None:
        self.token = AT_HAND.set(self)
        self.listener = heard(self._note)
        self.listener.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.listener.__exit__(*error)
        AT_HAND.reset(self.token)

    def _note(self, module, query, key, value, attention_mask=None, *, scaling=None, **kwargs):
        if module is self.listening:
            self.listening = None
            self.heard = (query, key, scaling or query.shape[-1] ** -0.5)
            if not self.pruner.before:
                raise _Enough

    def entering(self, i: int, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        """What the hook of layer i makes of the layer's arguments."""
        first = self.session.first
        if not self.prefill:
            return None if i < first else self._step(i, LayerCall(layer, args, kwargs))
        call = None
        if i >= first:
            call = LayerCall(layer, args, kwargs)
            if i in self.session.stages:
                self._drop(i, call)
            self._fit(i, call)
        self.known.layers.append(self.current)
        if self.pruner.before and i + 1 in self.session.stages and self.session.chosen is None:
            self.listening = layer.self_attn
        return None if call is None else (call.args, call.kwargs)

    def _drop(self, i: int, call: LayerCall) -> None:
        """On entering layer i, some of the visual tokens go."""
        here = self.known.seen(-1)
        if self.session.chosen is None:
            best = self._best(i, here, self._scores(i, call))
        else:
            best = self.session.chosen.prompt.seen(i)
        now = self.current
        visual = now.visual & ~now.dead
        keep = ~now.visual & ~now.dead
        for row, (there, chosen) in enumerate(zip(here, best, strict=True)):
            keep[row, visual[row]] = torch.isin(there, chosen)
        order = line_up(keep, pad_right=bool(now.dead[:, -1].any()))  # (B, L')
        dead = ~keep.gather(1, order)
        self.current = Sequence(
            now.index.gather(1, order), dead, now.visual.gather(1, order), bool(dead.any())
        )
        width = call.hidden.shape[-1]
        call.hidden = call.hidden.gather(1, order[..., None].expand(-1, -1, width))  # (B, L', d)

    def _scores(self, i: int, call: LayerCall) -> Tensor:
        """(B, L') attention of the last prompt token, mean over heads."""
        if not self.pruner.before:
            self.listening = call.layer.self_attn
            seen = LayerCall(call.layer, call.args, call.kwargs)
            if call.hidden.shape[1] < self.known.length:
                self._fit(i, seen)
            with suppress(_Enough):
                seen.attend()
        if self.heard is None:
            raise UnsupportedModelError(
                f"layer {i} of {type(self.decoder).__name__} does not attend through transformers' "
                f"attention interface: method {self.pruner.name!r} has no attention to choose by."
            )
        (query, key, scaling), self.heard = self.heard, None
        alive = ~self.current.dead  # (B, L')
        last = alive.shape[1] - 1 - alive.flip(1).long().argmax(1)
        rows = torch.arange(len(last), device=last.device)
        q = query[rows, :, last].float()  # (B, h, d)
        k = key.float().repeat_interleave(query.shape[1] // key.shape[1], 1)  # (B, h, L', d)
        logits = torch.einsum("bhd,bhld->bhl", q, k) * scaling
        logits = logits.masked_fill(self.current.dead[:, None], -torch.inf)
        return logits.softmax(-1).mean(1)

    def _best(self, i: int, here: list[Tensor], scores: Tensor) -> list[Tensor]:
        """Of the visual tokens that are here, per row those that go on by their scores (B, L'):
        indices among its own."""
        rows = []
        for row, total in enumerate(self.totals):
            (places,) = (self.current.visual[row] & ~self.current.dead[row]).nonzero(as_tuple=True)
            k = min(self.pruner.count(total, self.session.stages[i]), len(places))
            order = scores[row, places].sort(descending=True, stable=True).indices
            rows.append(here[row][order[:k]])
        return rows

    def _fit(self, i: int, call: LayerCall) -> None:
        """Cut a layer's arguments at prefill down to the present sequence."""
        now = self.current
        self._refuse_window(call.layer, self.known.length)
        if self.session.reindex:
            places = ((~now.dead).cumsum(1) - 1).clamp(min=0)
            call.waves = waves_at(self.decoder, i, call.hidden, places)
            call.positions = places
        else:
            call.waves = tuple(_gather(wave, now.index) for wave in call.waves)
            if call.positions is not None:
                call.positions = _gather(call.positions[..., None], now.index)[..., 0]
        mask = call.mask
        if mask is not None and mask.dim() == 4:
            rows = now.index[:, None, :, None].expand(-1, -1, -1, mask.shape[-1])
            mask = mask.expand(len(now.index), -1, -1, -1).gather(2, rows)
        call.mask = self._mask(mask, now, now.index, call.hidden.shape[1])

    def _step(self, i: int, call: LayerCall) -> tuple[tuple, dict[str, Any]]:
        """A layer's arguments while decoding: its cache holds fewer tokens than the first's."""
        seen = self.known.layers[i]
        new = call.hidden.shape[1]
        grown = call.cache.get_seq_length(i) - seen.index.shape[1]
        self._refuse_window(call.layer, self.known.length + grown + new)
        if self.session.reindex:
            key = (id(seen), "waves", window(call.layer))
            if key not in self.made:
                counts = (~seen.dead).sum(1, keepdim=True)
                places = counts + grown + torch.arange(new, device=counts.device)
                self.made[key] = waves_at(self.decoder, i, call.hidden, places), places
            call.waves, call.positions = self.made[key]
        key = (id(seen), id(call.mask))
        if key not in self.made:
            tail = torch.arange(self.known.length, self.known.length + grown + new)
            tail = tail.to(seen.index.device).expand(len(seen.index), -1)
            columns = torch.cat([seen.index, tail], 1)
            self.made[key] = self._mask(call.mask, seen, columns, new)
        call.mask = self.made[key]
        return call.args, call.kwargs

    def _refuse_window(self, layer: nn.Module, length: int) -> None:
        """A window's cache drops the oldest of the tokens that are left, and its mask counts those
        of the whole prompt."""
        if (size := window(layer)) is not None and length > size:
            raise UnsupportedModelError(
                f"a sequence of {length} tokens is longer than the window of {size} that "
                f"{type(layer).__name__} sees: method {self.pruner.name!r} drops tokens inside "
                "the language model, and is undefined there."
            )

    def _mask(
        self, mask: Tensor | None, seen: Sequence, columns: Tensor, queries: int
    ) -> Tensor | None:
        """The mask of a layer for `queries` last tokens, over the columns that are left."""
        if mask is None and not seen.padded:
            return None
        dead = F.pad(seen.dead, (0, columns.shape[1] - seen.dead.shape[1]))
        if mask is None:
            mask = self._causal(columns, queries)
        elif mask.dim() == 2:
            return mask.gather(1, columns) * ~dead
        else:
            picked = columns[:, None, None].expand(-1, mask.shape[1], mask.shape[2], -1)
            mask = mask.expand(len(columns), -1, -1, -1).gather(3, picked)
        # padding sees itself, so that no row is without a key
        places = torch.arange(columns.shape[1], device=columns.device)
        itself = places[-queries:, None] == places if queries > 1 else places[None] < 0
        blocked = dead[:, None, None, :] & ~itself
        if mask.dtype == torch.bool:
            return mask & ~blocked
        return mask.masked_fill(blocked, torch.finfo(mask.dtype).min)

    def _causal(self, columns: Tensor, queries: int) -> Tensor:
        """What transformers left out because nothing was padded: each sees what came before."""
        places = torch.arange(columns.shape[1], device=columns.device)
        allowed = places[-queries:, None] >= places
        allowed = allowed.expand(len(columns), 1, -1, -1)
        if implementation(self.decoder.config) == "eager":
            least = torch.finfo(self.decoder.dtype).min
            return torch.zeros_like(allowed, dtype=self.decoder.dtype).masked_fill(~allowed, least)
        return allowed


def _gather(table: Tensor, index: Tensor) -> Tensor:
    """Rows (B, L') of a (B or 1, L, d) table."""
    table = table.expand(len(index), -1, -1)
    return table.gather(1, index[..., None].expand(-1, -1, table.shape[-1]))
