"""One forward pass of a model in which tokens leave between layers."""

from __future__ import annotations

from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fopru.applying.layers import LayerCall, attends, waves_at, window
from fopru.attention import heard, implementation
from fopru.families import UnsupportedModelError
from fopru.pruned import line_up


@dataclass(frozen=True, eq=False)
class LayerTokens:
    """The tokens of the prompt that a layer sees."""

    index: Tensor
    """(B, L') int64: the column of the prompt that each token stands in."""
    dead: Tensor
    """(B, L') bool: True for padding, be it of the prompt or because rows keep unequal numbers."""
    visual: Tensor
    """(B, L') bool: True for visual tokens."""
    padded: bool
    """Whether any token is dead."""

    def rows(self, index: Tensor) -> LayerTokens:
        """Return the tokens of some rows of the batch, in the order of `index`."""
        index = index.to(self.index.device)
        return LayerTokens(self.index[index], self.dead[index], self.visual[index], self.padded)


@dataclass(eq=False)
class Layers:
    """What is kept with the KV cache of a prompt of L tokens that lost some between layers."""

    length: int
    """L, the number of tokens in each row of the whole prompt."""
    layers: list[LayerTokens] = field(default_factory=list)
    """The tokens that each layer of the language model sees."""

    @property
    def n_rows(self) -> int:
        """B, the number of rows."""
        return len(self.layers[0].index)

    def rows(self, index: Tensor) -> Layers:
        """Return the same of some rows of the batch, in the order of `index`."""
        done: dict[int, LayerTokens] = {}
        for layer in self.layers:
            done.setdefault(id(layer), layer.rows(index))
        return Layers(self.length, [done[id(layer)] for layer in self.layers])

    def visible(self, layer: int) -> list[Tensor]:
        """Return the visual tokens that a layer sees of each row, as indices among the row's
        own."""
        first, here = self.layers[0], self.layers[layer]
        rows = []
        for row in range(len(first.index)):
            visual = first.index[row][first.visual[row]]
            visible = here.index[row][here.visual[row] & ~here.dead[row]]
            rows.append(torch.searchsorted(visual.contiguous(), visible))
        return rows


AT_HAND: ContextVar[Pass | None] = ContextVar("fopru_pass", default=None)
"""The pass that this thread is in, or None."""


class _Enough(Exception):
    """Ends a layer's attention: its queries and keys are noted, and its output is not needed."""


class Pass:
    """One forward pass: of a prompt with pictures, or of a step on its cache."""

    def __init__(
        self,
        session: Any,
        known: Layers,
        current: LayerTokens | None = None,
        shown: Tensor | None = None,
    ):
        self.session, self.known = session, known
        self.shown = shown
        """(B, K): the caller's attention mask at a step, where there is one with a value a key."""
        self.pruner, self.decoder = session.pruner, session.decoder
        self.prefill = current is not None
        self.current = current
        self.totals = [] if current is None else current.visual.sum(1).tolist()
        self.heard: tuple[Tensor, Tensor, float] | None = None
        self.listening: nn.Module | None = None
        self.shared: dict[Any, Any] = {}
        """Masks and rotary embeddings of this pass, which layers with the same tokens share."""

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
        """Return the arguments that layer i gets in place of its own; None where these stay."""
        first = self.session.first
        if not self.prefill:
            if i < first or not attends(layer):  # a state is of the tokens that the layer saw
                return None
            return self._step(i, LayerCall(layer, args, kwargs))
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
        """Drop visual tokens on entering layer i."""
        visible = self.known.visible(-1)
        if self.session.chosen is None:
            best = self._best(i, visible, self._scores(i, call))
        else:
            best = self.session.chosen.prompt.visible(i)
        now = self.current
        visual = now.visual & ~now.dead
        keep = ~now.visual & ~now.dead
        for row, (own, chosen) in enumerate(zip(visible, best, strict=True)):
            keep[row, visual[row]] = torch.isin(own, chosen)
        order = line_up(keep, pad_right=bool(now.dead[:, -1].any()))  # (B, L')
        dead = ~keep.gather(1, order)
        self.current = LayerTokens(
            now.index.gather(1, order), dead, now.visual.gather(1, order), bool(dead.any())
        )
        width = call.hidden.shape[-1]
        call.hidden = call.hidden.gather(1, order[..., None].expand(-1, -1, width))  # (B, L', d)

    def _scores(self, i: int, call: LayerCall) -> Tensor:
        """Return the attention of the last prompt token to each token, mean over heads: (B, L')."""
        if not self.pruner.before:
            self.listening = call.layer.self_attn
            probe = LayerCall(call.layer, call.args, call.kwargs)
            if call.hidden.shape[1] < self.known.length:
                self._fit(i, probe)
            with suppress(_Enough):
                probe.attend()
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

    def _best(self, i: int, visible: list[Tensor], scores: Tensor) -> list[Tensor]:
        """Return the visual tokens of each row that go on by their scores (B, L'), as indices among
        its own."""
        rows = []
        for row, total in enumerate(self.totals):
            (places,) = (self.current.visual[row] & ~self.current.dead[row]).nonzero(as_tuple=True)
            k = min(self.pruner.count(total, self.session.stages[i]), len(places))
            order = scores[row, places].sort(descending=True, stable=True).indices
            rows.append(visible[row][order[:k]])
        return rows

    def _fit(self, i: int, call: LayerCall) -> None:
        """Cut a layer's arguments at prefill down to the tokens that are left."""
        now = self.current
        if not attends(call.layer):
            call.mask = ~now.dead if now.padded else None
            return
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
        """Cut a layer's arguments while decoding: its KV cache holds fewer tokens than the first
        layer's."""
        tokens = self.known.layers[i]
        new = call.hidden.shape[1]
        grown = call.cache.get_seq_length(i) - tokens.index.shape[1]
        self._refuse_window(call.layer, self.known.length + grown + new)
        if self.session.reindex:
            key = (id(tokens), "waves", window(call.layer))
            if key not in self.shared:
                counts = (~tokens.dead).sum(1, keepdim=True)
                places = counts + grown + torch.arange(new, device=counts.device)
                self.shared[key] = waves_at(self.decoder, i, call.hidden, places), places
            call.waves, call.positions = self.shared[key]
        key = (id(tokens), id(call.mask))
        if key not in self.shared:
            tail = torch.arange(self.known.length, self.known.length + grown + new)
            tail = tail.to(tokens.index.device).expand(len(tokens.index), -1)
            columns = torch.cat([tokens.index, tail], 1)
            self.shared[key] = self._mask(call.mask, tokens, columns, new)
        call.mask = self.shared[key]
        return call.args, call.kwargs

    def _refuse_window(self, layer: nn.Module, length: int) -> None:
        """Refuse a sequence longer than the window of a layer: its cache would drop the oldest of
        the tokens that are left, and its mask counts those of the whole prompt."""
        if (size := window(layer)) is not None and length > size:
            raise UnsupportedModelError(
                f"a sequence of {length} tokens is longer than the window of {size} that "
                f"{type(layer).__name__} sees: method {self.pruner.name!r} drops tokens inside "
                "the language model, and is undefined there."
            )

    def _mask(
        self, mask: Tensor | None, tokens: LayerTokens, columns: Tensor, queries: int
    ) -> Tensor | None:
        """Return the mask of a layer for the `queries` last tokens, over the columns that are
        left."""
        if mask is None and not tokens.padded:
            return None
        dead = F.pad(tokens.dead, (0, columns.shape[1] - tokens.dead.shape[1]))
        if mask is None:
            mask = self._causal(columns, queries)
        elif mask.dim() == 4 and mask.shape[-1] <= int(columns.max()):
            # made for the cache of a layer that tokens have left: Gemma's first without a window
            mask = self._causal(columns, queries)
            if self.shown is not None:
                dead = dead | (self.shown.gather(1, columns) == 0)
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
        """Make the mask that transformers leaves out where nothing is padded: each token sees those
        before it."""
        places = torch.arange(columns.shape[1], device=columns.device)
        allowed = places[-queries:, None] >= places
        allowed = allowed.expand(len(columns), 1, -1, -1)
        if implementation(self.decoder.config) == "eager":
            least = torch.finfo(self.decoder.dtype).min
            return torch.zeros_like(allowed, dtype=self.decoder.dtype).masked_fill(~allowed, least)
        return allowed


def _gather(table: Tensor, index: Tensor) -> Tensor:
    """Pick rows (B, L') of a (B or 1, L, d) table."""
    table = table.expand(len(index), -1, -1)
    return table.gather(1, index[..., None].expand(-1, -1, table.shape[-1]))
