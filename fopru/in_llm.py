"""Pruning inside the language model: tokens leave between two of its layers, at prefill."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fopru.encoding import Encoded
from fopru.families import Family, UnsupportedModelError
from fopru.picking import floor_share
from fopru.pruned import PrunedInputs, line_up
from fopru.pruner import Pruner
from fopru.run import alone, by_name
from fopru.tapping import SEEN, register


@dataclass(frozen=True)
class Sequence:
    """Which tokens of the prompt a layer still sees."""

    index: Tensor
    """(B, L') columns of the prompt."""
    dead: Tensor
    """(B, L') bool: padding, of the prompt or because rows keep unequal numbers."""
    visual: Tensor
    """(B, L') bool."""


@dataclass
class InLLMRun:
    """What happened inside `with pruner(model) as run:` for a method inside the LLM."""

    layers: list[Sequence] = field(default_factory=list)
    """Per layer of the language model, for the last prompt with pictures."""

    @property
    def kept(self) -> list[Tensor]:
        """Per row the visual tokens that the last layer sees: indices among the row's own."""
        return [tokens.cpu() for tokens in self.seen(-1)]

    def seen(self, layer: int) -> list[Tensor]:
        """Per row the visual tokens that a layer sees: indices among the row's own."""
        first, there = self.layers[0], self.layers[layer]
        rows = []
        for row in range(len(first.index)):
            visual = first.index[row][first.visual[row]]
            seen = there.index[row][there.visual[row] & ~there.dead[row]]
            rows.append(torch.searchsorted(visual.contiguous(), seen))
        return rows

    @property
    def visual_counts(self) -> list[list[int]]:
        """Visual tokens that each layer sees, per row of the batch."""
        return [(s.visual & ~s.dead).sum(1).tolist() for s in self.layers]

    @property
    def layer_weighted(self) -> list[float]:
        """Mean over layers of the visual tokens seen, per row: what the method really costs."""
        counts = self.visual_counts
        return [sum(row) / len(counts) for row in zip(*counts, strict=True)]


@dataclass(frozen=True)
class InLLMPruner(Pruner):
    """A method that drops visual tokens inside the language model.

    It works in `with pruner(model)` only. `retention` is the share of visual tokens that the last
    layers see; text tokens always stay, and all rows keep their order.
    """

    def __post_init__(self):
        super().__post_init__()
        if self.k is not None:
            raise ValueError(f"k={self.k}: methods inside the language model take `retention`.")

    @classmethod
    def selects(cls) -> bool:
        return False

    reindexes: ClassVar[bool] = False
    """Whether tokens are numbered anew after each drop when `positions` is None."""

    def numbering(self, family: Family) -> str:
        if self.positions is None and (family.spatial or not self.reindexes):
            return "preserve"
        return "reindex" if self.positions is None else super().numbering(family)

    def stages(self, n_layers: int) -> dict[int, float]:
        """Layer that tokens leave on entering it -> share of all visual tokens that go on.

        Raises:
            ValueError: the model has too few layers.
        """
        raise NotImplementedError

    def count(self, n: int, share: float) -> int:
        """Visual tokens that go on of n."""
        return floor_share(n, share)

    before: ClassVar[bool] = True
    """Whether tokens are scored by the attention of the layer before the one they leave at, or by
    that layer's own projections of its input."""

    def prune(self, model: PreTrainedModel, inputs: Mapping[str, Any]) -> PrunedInputs:
        """Raises ValueError: there are no shorter inputs, tokens leave later."""
        raise ValueError(
            f"method {self.name!r} drops tokens inside the language model: use "
            "`with pruner(model):` around generate or forward."
        )

    def compact(self, encoded: Encoded) -> PrunedInputs:
        """Raises ValueError, as `prune` does."""
        return self.prune(encoded.family.model, encoded.inputs)

    def __call__(self, model: PreTrainedModel, chosen: InLLMRun | None = None):
        """`with pruner(model) as run:` prunes all that goes through the model.

        Args:
            chosen: keep what was kept in that run, of prompts on the same pictures row by row: as
                if these prompts were asked on its cache.
        """
        return _inside(self, model, chosen)


@contextmanager
def _inside(
    pruner: InLLMPruner, model: PreTrainedModel, chosen: InLLMRun | None
) -> Iterator[InLLMRun]:
    family = Family.of(model)
    decoder = family.decoder
    work = _Work(pruner, family, chosen)
    with alone(model):
        handles = [model.register_forward_pre_hook(work.prompt, prepend=True, with_kwargs=True)]
        for i, layer in enumerate(decoder.layers):
            handles.append(layer.register_forward_pre_hook(work.entering(i), with_kwargs=True))
        implementation = decoder.config._attn_implementation
        decoder.config._attn_implementation = register(implementation)
        token = SEEN.set(work.note)
        try:
            yield work.run
        finally:
            SEEN.reset(token)
            decoder.config._attn_implementation = implementation
            for handle in handles:
                handle.remove()


class _Enough(Exception):
    """Queries and keys are noted: what the layer would do with them is not needed."""


class _Work:
    """The hooks of one `with` block, and what they know of the prompt at hand."""

    def __init__(self, pruner: InLLMPruner, family: Family, chosen: InLLMRun | None):
        self.pruner, self.family, self.decoder = pruner, family, family.decoder
        self.chosen = chosen
        self.stages = pruner.stages(len(self.decoder.layers))
        if (first := min(self.stages)) < family.n_deep:
            raise UnsupportedModelError(
                f"method {pruner.name!r} drops tokens on entering layer {first}, and layers up to "
                f"{family.n_deep - 1} of {family.title} add features to all visual tokens: it is "
                "undefined here."
            )
        self.reindex = pruner.numbering(family) == "reindex"
        self.run = InLLMRun()
        scored = self.stages if chosen is None else ()
        watched = (i - 1 if pruner.before else i for i in scored)
        self.watched = {id(self.decoder.layers[i].self_attn) for i in watched}
        self.noted: tuple[Tensor, Tensor, float] | None = None
        self.current: Sequence | None = None
        self.prefill = False

    def prompt(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Before each forward: a prompt with pictures, a step on its cache, or text alone."""
        named = by_name(model.forward, args, kwargs)
        cache, ids = named.get("past_key_values"), named.get("input_ids")
        self.prefill = False
        if cache is not None and cache.get_seq_length() > 0:
            return
        self.run.layers = []
        if ids is None or not bool((ids == self.family.image_token_id).any()):
            return
        if named.get("labels") is not None:
            raise ValueError(
                f"labels were given, and method {self.pruner.name!r} shortens the sequence inside "
                "the model: leave them out and compare logits yourself."
            )
        mask = named.get("attention_mask")
        dead = torch.zeros_like(ids, dtype=torch.bool) if mask is None else mask == 0
        index = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        self.current = Sequence(index, dead, ids == self.family.image_token_id)
        self.totals = self.current.visual.sum(1).tolist()
        self.length = ids.shape[1]
        self.prefill = True

    def note(self, module, query, key, value, attention_mask=None, *, scaling=None, **kwargs):
        if self.prefill and id(module) in self.watched:
            self.noted = (query, key, scaling or query.shape[-1] ** -0.5)
            if not self.pruner.before:
                self.watched.discard(id(module))
                raise _Enough

    def entering(self, i: int):
        """The hook of layer i."""

        def hook(layer: nn.Module, args: tuple, kwargs: dict[str, Any]):
            if not self.prefill:
                if self.run.layers and i >= min(self.stages):
                    return args, self.step(i, kwargs)
                return None
            hidden = args[0]
            if i in self.stages:
                here = self.run.seen(-1)
                if self.chosen is None:
                    best = self.best(i, here, self.scores(i, layer, hidden, kwargs))
                else:
                    best = self.chosen.seen(i)
                order = self.drop(here, best)
                hidden = hidden.gather(1, order[..., None].expand(-1, -1, hidden.shape[-1]))
            self.run.layers.append(self.current)
            if i < min(self.stages):
                return None
            return (hidden, *args[1:]), self.fitted(i, kwargs, hidden)

        return hook

    def scores(self, i: int, layer: nn.Module, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """(B, L') attention of the last prompt token, mean over heads."""
        if not self.pruner.before:
            self.watched.add(id(layer.self_attn))
            shorter = hidden.shape[1] < self.length
            seen = self.fitted(i, kwargs, hidden) if shorter else kwargs
            with suppress(_Enough):
                layer.self_attn(layer.input_layernorm(hidden), **{**seen, "past_key_values": None})
        query, key, scaling = self.noted
        alive = ~self.current.dead  # (B, L')
        last = alive.shape[1] - 1 - alive.flip(1).long().argmax(1)
        rows = torch.arange(len(last), device=last.device)
        q = query[rows, :, last].float()  # (B, h, d)
        k = key.float().repeat_interleave(query.shape[1] // key.shape[1], 1)  # (B, h, L', d)
        logits = torch.einsum("bhd,bhld->bhl", q, k) * scaling
        logits = logits.masked_fill(self.current.dead[:, None], -torch.inf)
        return logits.softmax(-1).mean(1)

    def best(self, i: int, here: list[Tensor], scores: Tensor) -> list[Tensor]:
        """Of the visual tokens that are here, per row those that go on by their scores (B, L'):
        indices among its own."""
        rows = []
        for row, total in enumerate(self.totals):
            (places,) = (self.current.visual[row] & ~self.current.dead[row]).nonzero(as_tuple=True)
            k = min(self.pruner.count(total, self.stages[i]), len(places))
            order = scores[row, places].sort(descending=True, stable=True).indices
            rows.append(here[row][order[:k]])
        return rows

    def drop(self, here: list[Tensor], best: list[Tensor]) -> Tensor:
        """Keep the best of the visual tokens that are here; the places in the present sequence of
        all that goes on."""
        now = self.current
        visual = now.visual & ~now.dead
        keep = ~now.visual & ~now.dead
        for row, (there, chosen) in enumerate(zip(here, best, strict=True)):
            keep[row, visual[row]] = torch.isin(there, chosen)
        order = line_up(keep, pad_right=bool(now.dead[:, -1].any()))
        self.current = Sequence(
            now.index.gather(1, order), ~keep.gather(1, order), now.visual.gather(1, order)
        )
        return order

    def fitted(self, i: int, kwargs: dict[str, Any], hidden: Tensor) -> dict[str, Any]:
        """A layer's arguments at prefill, cut down to the present sequence."""
        now, kwargs = self.current, dict(kwargs)
        if self.reindex:
            places = ((~now.dead).cumsum(1) - 1).clamp(min=0)
            kwargs["position_embeddings"] = self.waves(i, hidden, places)
        else:
            waves = kwargs["position_embeddings"]
            kwargs["position_embeddings"] = tuple(_gather(w, now.index) for w in waves)
        mask = kwargs.get("attention_mask")
        if mask is not None and mask.dim() == 4:
            rows = now.index[:, None, :, None].expand(-1, -1, -1, mask.shape[-1])
            mask = mask.expand(len(now.index), -1, -1, -1).gather(2, rows)
        kwargs["attention_mask"] = self.mask(mask, now, now.index, hidden.shape[1])
        return kwargs

    def waves(self, i: int, like: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Rotary embeddings of new positions, (B, L'), for layer i."""
        rotary = self.decoder.rotary_emb
        if hasattr(rotary, "layer_types"):  # Gemma 3: the layers with a window have their own
            return rotary(like, places, self.decoder.config.layer_types[i])
        return rotary(like, position_ids=places)

    def step(self, i: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        """A layer's arguments while decoding: its cache holds fewer tokens than the first's."""
        seen, kwargs = self.run.layers[i], dict(kwargs)
        cos = kwargs["position_embeddings"][0]
        new = cos.shape[1]
        grown = kwargs["past_key_values"].get_seq_length(i) - seen.index.shape[1]
        if self.reindex:
            counts = (~seen.dead).sum(1, keepdim=True)
            places = counts + grown + torch.arange(new, device=counts.device)
            kwargs["position_embeddings"] = self.waves(i, cos, places)
        tail = torch.arange(self.length, self.length + grown + new, device=seen.index.device)
        columns = torch.cat([seen.index, tail.expand(len(seen.index), -1)], 1)
        kwargs["attention_mask"] = self.mask(kwargs.get("attention_mask"), seen, columns, new)
        return kwargs

    def mask(
        self, mask: Tensor | None, seen: Sequence, columns: Tensor, queries: int
    ) -> Tensor | None:
        """The mask of a layer for `queries` last tokens, over the columns that are left."""
        dead = torch.nn.functional.pad(seen.dead, (0, columns.shape[1] - seen.dead.shape[1]))
        if mask is None and not bool(dead.any()):
            return None
        if mask is None:
            mask = self.causal(columns, queries)
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

    def causal(self, columns: Tensor, queries: int) -> Tensor:
        """What transformers left out because nothing was padded: each sees what came before."""
        places = torch.arange(columns.shape[1], device=columns.device)
        allowed = places[-queries:, None] >= places
        allowed = allowed.expand(len(columns), 1, -1, -1)
        if self.decoder.config._attn_implementation.endswith("eager"):
            least = torch.finfo(self.decoder.dtype).min
            return torch.zeros_like(allowed, dtype=self.decoder.dtype).masked_fill(~allowed, least)
        return allowed


def _gather(table: Tensor, index: Tensor) -> Tensor:
    """Rows (B, L') of a (B or 1, L, d) table."""
    table = table.expand(len(index), -1, -1)
    return table.gather(1, index[..., None].expand(-1, -1, table.shape[-1]))
