"""One forward pass of a model in which tokens leave between layers."""

from __future__ import annotations

from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fopru.applying.layers import LayerCall, attends, waves_at, window
from fopru.applying.tokens import Layers, LayerTokens
from fopru.attention import heard, implementation
from fopru.families import UnsupportedModelError
from fopru.picking import BLOCK_ELEMENTS, remaining, top, wide
from fopru.pruned import line_up

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
        self.raters: Tensor | None = None
        """(B, L) bool: the tokens of the prompt by whose attention visual ones are scored."""
        self.heard: tuple[Any, ...] | None = None
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

    def _note(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        *,
        scaling: float | None = None,
        softcap: float | None = None,
        **kwargs: Any,
    ) -> None:
        if module is self.listening:
            self.listening = None
            scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
            self.heard = (query, key, attention_mask, scaling, softcap)
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
        if i == 0 and self.session.chosen is None:
            self.raters = self._raters(LayerCall(layer, args, kwargs).hidden)
        if i >= first:
            call = LayerCall(layer, args, kwargs)
            if i in self.session.stages:
                self._drop(i, call)
            self._fit(i, call)
        self.known.layers.append(self.current)
        if self.pruner.before and i + 1 in self.session.stages and self.session.chosen is None:
            self.listening = layer.self_attn
        return None if call is None else (call.args, call.kwargs)

    @torch.no_grad()
    def _raters(self, hidden: Tensor) -> Tensor:
        """Ask the method by whose attention it scores: (B, L) bool."""
        now = self.current
        raters = torch.zeros_like(now.dead)
        for row, total in enumerate(self.totals):
            alive = ~now.dead[row]
            if total:
                raters[row, alive] = self.pruner.raters(hidden[row, alive], now.visual[row, alive])
        return raters

    def _drop(self, i: int, call: LayerCall) -> None:
        """Drop visual tokens on entering layer i."""
        now, hidden = self.current, call.hidden
        visible, visual = self.known.visible(-1), now.visual & ~now.dead
        if self.session.chosen is None:
            scores = self._scores(i, call)
        else:
            owners = self.session.chosen.prompt.owners(i)
        keep, owner = ~now.visual & ~now.dead, now.owner.clone()
        for row, own in enumerate(visible):
            (places,) = visual[row].nonzero(as_tuple=True)  # (n,)
            if self.session.chosen is None:
                went = self._went(i, row, own, scores[row, places], hidden[row, places])
            else:  # of the tokens that are here
                there = owners[row][own]
                went = torch.searchsorted(own, there).where(there >= 0, -1)
            keep[row, places] = went == torch.arange(len(went), device=went.device)
            columns = now.index[row, places]
            table = torch.arange(owner.shape[1], device=owner.device)  # (L,)
            table[columns] = columns[went].where(went >= 0, -1)
            owner[row] = table[owner[row]].where(owner[row] >= 0, -1)
            hidden = _averaged(hidden, row, places, went)
        order = line_up(keep, pad_right=bool(now.dead[:, -1].any()))  # (B, L')
        dead = ~keep.gather(1, order)
        index, visual = now.index.gather(1, order), now.visual.gather(1, order)
        self.current = LayerTokens(index, dead, visual, bool(dead.any()), owner)
        call.hidden = hidden.gather(1, order[..., None].expand(-1, -1, hidden.shape[-1]))

    @torch.no_grad()
    def _scores(self, i: int, call: LayerCall) -> Tensor:
        """Return the attention of the raters to each token, mean over them and over heads: (B, L')
        float32."""
        now = self.current
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
        (query, key, mask, scaling, softcap), self.heard = self.heard, None
        _, heads, length, _ = query.shape
        scores = torch.zeros(now.dead.shape, device=query.device)
        asked = self.raters.gather(1, now.index)  # (B, L')
        places = torch.arange(length, device=query.device)
        for row in asked.any(1).nonzero().flatten().tolist():
            keys = key[row].float().repeat_interleave(heads // key.shape[1], 0)  # (h, L', d)
            found = 0
            raters = asked[row].nonzero().flatten()
            for some in raters.split(max(1, BLOCK_ELEMENTS // (heads * length))):
                logits = query[row, :, some].float() @ keys.transpose(1, 2) * scaling  # (h, R, L')
                if softcap is not None:
                    logits = softcap * (logits / softcap).tanh()
                if mask is not None and mask.dim() == 4:
                    shown = mask[min(row, len(mask) - 1), :, some]  # (1, R, L')
                    shown = shown if shown.dtype == torch.bool else shown >= 0
                else:
                    shown = (places <= some[:, None]) & ~now.dead[row]
                logits = logits.masked_fill(~shown, -torch.inf)
                found = found + wide(logits.softmax(-1).flatten(0, 1)).sum(0)
            scores[row] = (found / (heads * len(raters))).float()
        return scores

    @torch.no_grad()
    def _went(self, i: int, row: int, own: Tensor, scores: Tensor, hidden: Tensor) -> Tensor:
        """Return what becomes of a row's n visual tokens on entering layer i: (n,) int64 places
        among them, its own for one that goes on, that of another for one that is averaged into its
        slot, -1 for one that is dropped.

        Args:
            own: (n,) int64: which of the row's visual tokens they are.
            scores: (n,) their scores.
            hidden: (n, d) their hidden states.
        """
        n = len(own)
        went = torch.full_like(own, -1)
        k = min(self.pruner.count(self.totals[row], self.session.stages[i]), n)
        if not k:
            return went
        kept = top(scores, k).to(own.device)
        went[kept] = kept
        if self.pruner.recycle:
            gone, start = remaining(kept, n), 0
            for grid in self.known.pictures[row]:
                here = (own[gone] >= start) & (own[gone] < start + grid.n_tokens)
                start, some = start + grid.n_tokens, gone[here]
                if len(some):
                    slots = self.pruner.clusters(scores[some], hidden[some]).to(own.device)
                    went[some] = some[slots].where(slots >= 0, -1)
        return went

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


def _averaged(hidden: Tensor, row: int, places: Tensor, went: Tensor) -> Tensor:
    """Return hidden states (B, L, d) in which tokens of a row are averaged that share a slot.

    Args:
        places: (n,) int64: where the row's visual tokens stand.
        went: (n,) int64: for each the one, among them, whose slot it takes, or -1.
    """
    others = (went >= 0) & (went != torch.arange(len(went), device=went.device))
    shared = torch.isin(went, went[others])
    if not bool(shared.any()):
        return hidden
    slots, members, sizes = went[shared].unique(return_inverse=True, return_counts=True)
    old = wide(hidden[row, places[shared]])
    sums = old.new_zeros(len(slots), old.shape[1]).index_add(0, members.to(old.device), old)
    hidden = hidden.clone()
    hidden[row, places[slots]] = (sums / sizes.to(old.device)[:, None]).to(hidden)
    return hidden
