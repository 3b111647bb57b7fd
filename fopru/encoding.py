"""encode(): the vision tower once, with one look into the attention layers that pruners need.

The tap is an attention function, registered with transformers under the name of the one in use
(`fopru_sdpa` stands for `sdpa`) and set on the vision config only, and only while encoding. It
notes the queries and keys of the tapped block and hands on to the real one, so the tower keeps its
fast kernels and its exact output.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fopru.families import Family, Grid, UnsupportedModelError
from fopru.significance import attention_scores


class Tap(NamedTuple):
    """One thing to learn from the tower's attention."""

    block: int
    axis: str  # one of `fopru.significance.AXES`, or "keys"
    scores: str = "probabilities"


VISION = Tap(-1, "vision")
"""Not of the attention: the tower's features, as the projector gets them."""


class Requests(Protocol):
    """What `encode` asks of a pruner: the taps it needs, given the family's adapter."""

    def taps(self, family: Family) -> set[Tap]: ...


@dataclass(frozen=True)
class EncodedImage:
    """One picture, or one view of it, after the vision tower. N visual tokens."""

    family: Family
    sample: int
    """The batch row whose prompt holds the picture."""
    features: Tensor
    """(N, d): what the LLM would get."""
    grid: Grid
    scores: Mapping[Tap, Tensor]
    """tap -> (N,) or, of keys and `VISION`, (N, c); a newline token has the mean of its row."""
    text: Tensor | None = field(default=None, kw_only=True)
    """(T, d): the LLM's embeddings of the prompt's text, for methods that need it."""
    significance: Tensor | None = field(default=None, kw_only=True)
    """(N,) float32: the scores by which a pruner ranks, where it has any."""

    @property
    def patches(self) -> Tensor:
        """(N,) bool: True for patches, False for newline tokens."""
        return (self.grid.columns >= 0).to(self.features.device)

    def tap(self, axis: str, layer: int | None = None, scores: str = "probabilities") -> Tensor:
        """(N,) float32 scores of one tapped layer.

        Raises:
            ValueError: they were not asked for when the picture was encoded.
        """
        tap = Tap(self.family.block(layer), axis, scores)
        if tap not in self.scores:
            raise ValueError(
                f"this picture was encoded without the {axis!r} {scores} of block {tap.block}: "
                "name the pruner in encode(model, inputs, pruners=[...])."
            )
        return self.scores[tap]

    def keys(self, layer: int | None = None) -> Tensor:
        """(N, h, d_h) keys of one tapped layer, by head."""
        heads = self.family.tower.config.num_attention_heads
        return self.tap("keys", layer).unflatten(1, (heads, -1))

    @property
    def vision(self) -> Tensor:
        """(N, d_v): the tower's features, before the projector."""
        if VISION not in self.scores:
            raise ValueError(
                "this picture was encoded without the tower's features: name the pruner in "
                "encode(model, inputs, pruners=[...])."
            )
        return self.scores[VISION]

    def views(self) -> Iterator[EncodedImage]:
        """Each view as a picture of its own: budgets apply per view."""
        start = 0
        for view in self.grid.views:
            tokens = slice(start, start + view.n_tokens)
            start = tokens.stop
            yield replace(
                self,
                features=self.features[tokens],
                grid=Grid((view,)),
                scores={tap: scores[tokens] for tap, scores in self.scores.items()},
            )


@dataclass(frozen=True)
class Encoded:
    """A batch after the vision tower: the pictures, and the inputs that are still text."""

    family: Family
    inputs: Mapping[str, Any]
    images: tuple[EncodedImage, ...]

    def text(self, sample: int) -> Tensor:
        """(T, d): the LLM's embeddings of a prompt's text; no placeholders, no special tokens."""
        ids, mask = self.inputs["input_ids"][sample], self.inputs.get("attention_mask")
        text = self.family.config.get_text_config()
        special = (self.family.image_token_id, text.bos_token_id, text.pad_token_id)
        keep = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask[sample].bool()
        for token in special:
            keep &= ids != (-1 if token is None else token)
        return self.family.model.get_input_embeddings()(ids[keep])


@torch.no_grad()
def encode(
    model: PreTrainedModel, inputs: Mapping[str, Any], pruners: Collection[Requests] = ()
) -> Encoded:
    """Run the vision tower and projector once, learning what all of `pruners` need to know.

    Without gradients: training through pruned inputs reaches the language model only.

    Args:
        model: a vision-language model of transformers, of a family in `fopru.families`.
        inputs: what the model's processor returned; tensors on any device.
        pruners: their taps are computed in this one pass; none means a plain pass.

    Raises:
        UnsupportedModelError: no adapter for the model, or its tower has no attention to read.
        ValueError: no images, or images and placeholders in `input_ids` do not match.
    """
    family = Family.of(model)
    taps = set().union(*(pruner.taps(family) for pruner in pruners))
    missing = [name for name in family.pixels if inputs.get(name) is None]
    if missing:
        raise ValueError(
            f"`inputs` hold no images ({', '.join(missing)} missing; there are: "
            f"{', '.join(inputs)}), so there is nothing to prune."
        )
    grids = family.grids(inputs)
    samples = _samples(family, inputs.get("input_ids"), [grid.n_tokens for grid in grids])

    attention = taps - {VISION}
    blocks = family.blocks if attention else ()
    with (
        _tapped(family.tower, {tap.block: blocks[tap.block] for tap in attention}) as seen,
        _projected(family, VISION in taps) as vision,
    ):
        features = family.features(inputs)
    scores = _scores(family, inputs, grids, attention, seen)
    if VISION in taps:
        scores[VISION] = _carried(family, inputs, grids, torch.cat(vision))
    text = {name: value for name, value in inputs.items() if name not in family.pixels}
    images = (
        EncodedImage(family, sample, feature, grid, {tap: s[i] for tap, s in scores.items()})
        for i, (sample, feature, grid) in enumerate(zip(samples, features, grids, strict=True))
    )
    return Encoded(family, text, tuple(images))


def _samples(family: Family, input_ids: Tensor | None, sizes: list[int]) -> list[int]:
    """The batch row of each picture, by counting placeholders."""
    if input_ids is None:
        raise ValueError(
            "`inputs` need input_ids: pruning shortens the prompt (inputs_embeds are "
            "not supported)."
        )
    counts = (input_ids == family.image_token_id).sum(1).tolist()
    if not any(counts):
        raise ValueError(
            f"input_ids hold no image placeholder (token id {family.image_token_id}), yet inputs "
            f"hold {len(sizes)} image(s): put the processor's image token into the text."
        )
    samples, row, left = [], 0, counts[0]
    for size in sizes:
        while left == 0 and row + 1 < len(counts):
            row, left = row + 1, counts[row + 1]
        if left < size:
            break
        samples.append(row)
        left -= size
    if len(samples) < len(sizes) or sum(sizes) != sum(counts):
        raise ValueError(
            f"images and placeholders do not match: {len(sizes)} image(s) of {sizes} visual "
            f"tokens, but rows of input_ids hold {counts} placeholders (token id "
            f"{family.image_token_id})."
        )
    return samples


@dataclass
class _Attention:
    """Queries and keys that went through one attention layer."""

    query: Tensor  # (tiles, h, T, d)
    key: Tensor
    scaling: float


SEEN: ContextVar[Callable[..., None] | None] = ContextVar("fopru_seen", default=None)
_LOCKS: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_LOCKS_GUARD = threading.Lock()


def register(implementation: str) -> str:
    """Register the tapped twin of an attention implementation; its name.

    The name contains the original's, since transformers asks whether "flash" is in it.
    """
    name = f"fopru_{implementation}"
    if name in ALL_ATTENTION_FUNCTIONS.valid_keys():
        return name

    def attention(module: nn.Module, query: Tensor, key: Tensor, *args: Any, **kwargs: Any):
        if (note := SEEN.get()) is not None:
            note(module, query, key, *args, **kwargs)
        if implementation == "eager":  # each modeling file has its own
            attend = sys.modules[type(module).__module__].eager_attention_forward
        else:
            attend = ALL_ATTENTION_FUNCTIONS[implementation]
        return attend(module, query, key, *args, **kwargs)

    if implementation in ALL_MASK_ATTENTION_FUNCTIONS.valid_keys():
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[implementation])
    AttentionInterface.register(name, attention)
    return name


@contextmanager
def _tapped(tower: PreTrainedModel, blocks: Mapping[int, nn.Module]):
    """Within the block, note q and k of `blocks`: yields index -> _Attention, filled as they run.

    Raises:
        UnsupportedModelError: on leaving, where a block did not run its attention through
            transformers' attention interface, or masked it.
    """
    seen: dict[int, _Attention] = {}
    if not blocks:
        yield seen
        return
    owner = {id(module): index for index, block in blocks.items() for module in block.modules()}

    def note(module, query, key, value, attention_mask=None, *, scaling=None, **kwargs):
        if (index := owner.get(id(module))) is None:
            return
        if attention_mask is not None or index in seen:
            raise UnsupportedModelError(
                f"{type(tower).__name__} masks or chunks the attention of its block {index}: "
                "there is no way to score its tokens yet."
            )
        seen[index] = _Attention(query, key, scaling or query.shape[-1] ** -0.5)

    with _LOCKS_GUARD:
        lock = _LOCKS.setdefault(tower, threading.RLock())
    with lock:
        implementation = tower.config._attn_implementation
        token = SEEN.set(note)
        tower.config._attn_implementation = register(implementation)
        try:
            yield seen
        finally:
            tower.config._attn_implementation = implementation
            SEEN.reset(token)
    if missed := blocks.keys() - seen.keys():
        raise UnsupportedModelError(
            f"blocks {sorted(missed)} of {type(tower).__name__} do not attend through "
            "transformers' attention interface: there is no attention to score its tokens by."
        )


@contextmanager
def _projected(family: Family, wanted: bool) -> Iterator[list[Tensor]]:
    """Within the block, note what the projector gets: (tiles, P, d_v) at a time."""
    seen: list[Tensor] = []
    if not wanted:
        yield seen
        return
    hook = family.projector.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        yield seen
    finally:
        hook.remove()


def _scores(
    family: Family,
    inputs: Mapping[str, Any],
    grids: list[Grid],
    taps: Collection[Tap],
    seen: Mapping[int, _Attention],
) -> dict[Tap, list[Tensor]]:
    """tap -> one (N,) vector per picture, or (N, c) keys."""
    n_patches = grids[0].views[0].n_tokens
    scores: dict[Tap, list[Tensor]] = {}
    for block, kind in {(tap.block, tap.scores) for tap in taps}:
        attention = seen[block]
        axes = {tap.axis for tap in taps if (tap.block, tap.scores) == (block, kind)}
        if "keys" in axes:
            keys = attention.key[:, :, -n_patches:].transpose(1, 2).flatten(2)  # (tiles, P, c)
            scores[Tap(block, "keys", kind)] = _carried(family, inputs, grids, keys)
        maps = attention_scores(
            attention.query,
            attention.key,
            attention.scaling,
            n_prefix=attention.query.shape[2] - n_patches,
            axes=axes - {"keys"},
            scores=kind,
        )  # (tiles, P)
        for axis, tile_maps in maps.items():
            carried = _carried(family, inputs, grids, tile_maps[..., None])
            scores[Tap(block, axis, kind)] = [vector.squeeze(1) for vector in carried]
    return scores


def _carried(
    family: Family, inputs: Mapping[str, Any], grids: list[Grid], maps: Tensor
) -> list[Tensor]:
    """(tiles, P, c) maps as one (N, c) table per picture."""
    tables = family.tokens(maps, inputs)
    return [_fill_newlines(table, grid) for table, grid in zip(tables, grids, strict=True)]


def _fill_newlines(table: Tensor, grid: Grid) -> Tensor:
    """Give each newline token the mean of its row, which the model's packing left infinite."""
    parts = []
    for view, part in zip(grid.views, table.split([v.n_tokens for v in grid.views]), strict=True):
        if view.newline:
            part = part.unflatten(0, (view.height, view.row_width))  # (H, W + 1, c)
            means = part[:, :-1].sum(1, keepdim=True) / max(view.width, 1)
            part = torch.cat([part[:, :-1], means], 1).flatten(0, 1)
        parts.append(part)
    return torch.cat(parts)
