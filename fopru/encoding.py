"""encode(): the vision tower once, with one look into the attention layers that pruners need."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from fopru.families import Family, Grid, UnsupportedModelError
from fopru.families.grid import filled, samples_of
from fopru.significance import attention_scores
from fopru.tapping import Attention, locked, projected, skipped, tapped


class Tap(NamedTuple):
    """One thing to learn from the vision tower's attention."""

    block: int
    axis: str  # one of `fopru.significance.AXES`, or "keys"
    scores: str = "probabilities"


VISION = Tap(-1, "vision")
"""The tap of the tower's features, as the projector gets them; it is not one of the attention."""

ENTRY = Tap(-1, "entry")
"""What a pruner asks for that says itself, by its `enter`, what goes through the tower at all."""


class Entered(NamedTuple):
    """What of a picture went through the tower, where a method left patches out before it."""

    by: str
    """The label of the method."""
    places: Tensor
    """(k,) int64, sorted: the places of the visual tokens whose patches went through it."""


class Requests(Protocol):
    """What `encode` wants of a pruner: the taps it needs, given the family's adapter. One that asks
    for `ENTRY` has the methods of `fopru.PixelPrune` as well."""

    def taps(self, family: Family) -> set[Tap]:
        """Return what `encode` has to learn from the vision tower."""


@dataclass(frozen=True, eq=False, repr=False)
class EncodedImage:
    """One picture or video, or one part of it, after the vision tower. It has N visual tokens."""

    family: Family
    """The adapter of the model's family."""
    sample: int
    """The batch row whose prompt holds the picture."""
    features: Tensor
    """(N, d): the visual tokens as the language model would get them; (k, d) where only k
    `entered`."""
    grid: Grid
    """Where the tokens lie in the picture."""
    learned: Mapping[Tap, Tensor]
    """What was learned from the tower: each `Tap` -> (N,) scores or, for keys and `VISION`, (N, c).
    A newline token has the mean of its row."""
    deep: Tensor | None = field(default=None, kw_only=True)
    """(N, c): what later layers of the language model get at these places too (Qwen3-VL)."""
    text: Tensor | None = field(default=None, kw_only=True)
    """(T, d): the language model's embeddings of the prompt's text, for methods that need it."""
    significance: Tensor | None = field(default=None, kw_only=True)
    """(N,) float32: the scores by which a pruner ranks, or None where it has none."""
    entered: Entered | None = field(default=None, kw_only=True)
    """The tokens that `features` and `deep` are of, where they are not all."""

    def __repr__(self) -> str:
        return f"EncodedImage({len(self.features)} visual tokens, row {self.sample})"

    @property
    def patches(self) -> Tensor:
        """(N,) bool: True for patches, False for newline tokens."""
        return (self.grid.columns >= 0).to(self.features.device)

    def tap(self, axis: str, layer: int | None = None, scores: str = "probabilities") -> Tensor:
        """Return the scores of one tapped layer, (N,) float32.

        Raises:
            ValueError: The scores were not computed when the picture was encoded.
        """
        tap = Tap(self.family.block(layer), axis, scores)
        if tap not in self.learned:
            raise ValueError(
                f"this picture was encoded without the {axis!r} {scores} of block {tap.block}: "
                "name the pruner in encode(model, inputs, pruners=[...])."
            )
        return self.learned[tap]

    def keys(self, layer: int | None = None) -> Tensor:
        """Return the keys of one tapped layer by head, (N, h, d_h)."""
        return self.tap("keys", layer).unflatten(1, (self.family.heads, -1))

    @property
    def vision(self) -> Tensor:
        """(N, d_v): the tower's features, before the projector."""
        if VISION not in self.learned:
            raise ValueError(
                "this picture was encoded without the tower's features: name the pruner in "
                "encode(model, inputs, pruners=[...])."
            )
        return self.learned[VISION]

    @property
    def whole(self) -> Tensor:
        """(N, d), or (N, d + c): the features, with the deep ones beside them where there are
        any."""
        return self.features if self.deep is None else torch.cat([self.features, self.deep], 1)

    def parts(self, grids: Iterable[Grid]) -> Iterator[EncodedImage]:
        """Each of these parts of the picture's grid, in order, as a picture of its own."""
        start = 0
        for grid in grids:
            tokens = slice(start, start + grid.n_tokens)
            start = tokens.stop
            yield replace(
                self,
                features=self.features[tokens],
                deep=None if self.deep is None else self.deep[tokens],
                grid=grid,
                learned={tap: values[tokens] for tap, values in self.learned.items()},
            )


@dataclass(frozen=True, eq=False, repr=False)
class Encoded:
    """A batch after the vision tower: its pictures, and the inputs that are still text."""

    family: Family
    """The adapter of the model's family."""
    inputs: Mapping[str, Any]
    """The processor's output without pixels: input_ids, attention_mask and the like."""
    images: tuple[EncodedImage, ...]
    """One `EncodedImage` per picture, in the order of the prompts."""

    def __repr__(self) -> str:
        return f"Encoded({self.family.title}, {len(self.images)} picture(s))"

    def text(self, sample: int) -> Tensor:
        """Return the language model's embeddings of the text in one row's prompt, (T, d).

        Padding is left out. So are the tokens that end a row of a picture, and every token that a
        config of the model names: placeholders, and what begins and ends prompts, answers and
        pictures. Marks that only the tokenizer knows, such as Qwen's `<|im_start|>`, count as text,
        since the inputs do not tell them from words.
        """
        ids, mask = self.inputs["input_ids"][sample], self.inputs.get("attention_mask")
        keep = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask[sample].bool()
        special = torch.tensor(sorted(_special(self.family)), device=ids.device)
        keep &= ~torch.isin(ids, special) & ~self.family.marks(ids)
        return self.family.model.get_input_embeddings()(ids[keep])


def _special(family: Family) -> set[int]:
    """Return every token id that the configs of a model name."""
    generation = getattr(family.model, "generation_config", None) or family.config
    configs = (family.config, family.config.get_text_config(), generation)
    found = {family.image_token_id}
    for name, value in (item for config in configs for item in vars(config).items()):
        if name.endswith(("_token_id", "_token_index")) and value is not None:
            found.update(value if isinstance(value, list | tuple) else [value])
    return found


@torch.no_grad()
def encode(
    model: PreTrainedModel, inputs: Mapping[str, Any], pruners: Collection[Requests] = ()
) -> Encoded:
    """Run the vision tower and projector once, learning what all of `pruners` need to know.

    No gradients are kept, so that training through pruned inputs reaches the language model only.

    Args:
        model: a vision-language model of transformers, of a family in `fopru.families`.
        inputs: what the model's processor returned; tensors on any device.
        pruners: the methods whose scores this one pass computes; without any it is a plain pass. A
            method that leaves patches out before the tower has to be the only one.

    Raises:
        UnsupportedModelError: no adapter for the model, or its tower has no attention to read.
        ValueError: no images, images and placeholders in `input_ids` that do not match, or a pass
            of the tower that cannot be shared.

    Example:
        Two methods that share one pass of the vision tower:

        >>> one, other = fopru.FoPru(0.25), fopru.DivPrune(0.25)
        >>> encoded = fopru.encode(model, inputs, [one, other])
        >>> out = model.generate(**one.compact(encoded))
    """
    return run_tower(model, inputs, pruners).scored()


@dataclass(frozen=True, eq=False, repr=False)
class TowerPass:
    """What one pass of the vision tower left, before any score is computed."""

    family: Family
    inputs: Mapping[str, Any]
    grids: list[Grid]
    samples: list[int]
    output: ModelOutput
    taps: set[Tap]
    attention: Mapping[int, list[Attention]]
    vision: list[Tensor]
    entered: list[Entered] | list[None]

    @torch.no_grad()
    def scored(self) -> Encoded:
        """Compute the scores of each picture."""
        family, inputs, grids = self.family, self.inputs, self.grids
        there = zip(grids, self.entered, strict=True)
        sizes = [grid.n_tokens if some is None else len(some.places) for grid, some in there]
        features, deep = family.features(self.output, sizes), family.deep(self.output, sizes)
        learned = _learned(family, inputs, grids, self.taps - {VISION, ENTRY}, self.attention)
        if VISION in self.taps:
            learned[VISION] = filled(family.vision(self.vision, inputs), grids)
        gone = (*family.pixels, *family.options)
        text = {name: value for name, value in inputs.items() if name not in gone}
        pictures = zip(self.samples, features, grids, deep, self.entered, strict=True)
        images = (
            EncodedImage(
                family,
                sample,
                feature,
                grid,
                {tap: s[i] for tap, s in learned.items()},
                deep=more,
                entered=some,
            )
            for i, (sample, feature, grid, more, some) in enumerate(pictures)
        )
        return Encoded(family, text, tuple(images))


@torch.no_grad()
def run_tower(
    model: PreTrainedModel, inputs: Mapping[str, Any], pruners: Collection[Requests] = ()
) -> TowerPass:
    """Run the vision tower and note its queries and keys: the first half of `encode`."""
    family = Family.of(model).reading(inputs)
    taps = set().union(*(pruner.taps(family) for pruner in pruners))
    if any(tap.axis.startswith("cls") for tap in taps) and not family.n_prefix:
        raise UnsupportedModelError(
            f"{type(family.tower).__name__} has no CLS token, whose attention was asked for: "
            "methods that score by it are undefined here; attention='received' is defined, where "
            "a method takes it."
        )
    missing = [name for name in family.pixels if inputs.get(name) is None]
    if missing:
        raise ValueError(
            f"`inputs` hold no images ({', '.join(missing)} missing; there are: "
            f"{', '.join(inputs)}), so there is nothing to prune."
        )
    grids = family.grids(inputs)
    sizes = [grid.n_tokens for grid in grids]
    samples = samples_of(inputs.get("input_ids"), family.image_token_id, sizes)
    entered = [None] * len(grids)
    if ENTRY in taps:
        entered = _entered(family, inputs, grids, pruners)
    attention = taps - {VISION, ENTRY}
    blocks = family.blocks if attention else ()
    deepest = max((tap.block for tap in attention), default=0)
    with (
        locked(family.tower),
        tapped(family.tower, {tap.block: blocks[tap.block] for tap in attention}) as noted,
        skipped(family.idle(deepest)),
        projected(family.projector if VISION in taps else None) as vision,
    ):
        if entered[0] is None:
            output = family.pictures(inputs)
        else:
            output = family.pictures_of(inputs, [some.places for some in entered])
    return TowerPass(family, inputs, grids, samples, output, taps, noted, vision, entered)


def _entered(
    family: Family, inputs: Mapping[str, Any], grids: list[Grid], pruners: Collection[Any]
) -> list[Entered]:
    """Return what goes through the tower of each picture, by the one pruner that says so."""
    alone = next(pruner for pruner in pruners if ENTRY in pruner.taps(family))
    if len(pruners) > 1:
        raise ValueError(
            f"pruners: method {alone.name!r} leaves patches out before the vision tower, so that "
            f"{len(pruners) - 1} other(s) cannot share its pass: encode for it alone."
        )
    pixels = family.token_pixels(inputs)
    return [
        Entered(alone.label, alone.enter(some, grid).cpu())
        for some, grid in zip(pixels, grids, strict=True)
    ]


def _learned(
    family: Family,
    inputs: Mapping[str, Any],
    grids: list[Grid],
    taps: Collection[Tap],
    attention: Mapping[int, list[Attention]],
) -> dict[Tap, list[Tensor]]:
    """Return each tap -> one (N,) vector per picture, or (N, c) keys."""
    learned: dict[Tap, list[Tensor]] = {}
    for block, kind in {(tap.block, tap.scores) for tap in taps}:
        axes = {tap.axis for tap in taps if (tap.block, tap.scores) == (block, kind)}
        maps: dict[str, list[Tensor]] = {axis: [] for axis in axes}
        for query, key, scaling, visible in attention[block]:
            if "keys" in axes:
                patches = key[:, :, family.n_prefix :]  # (tiles, h, P, d)
                maps["keys"] += patches.transpose(1, 2).flatten(2)
            found = attention_scores(
                query,
                key,
                scaling,
                family.n_prefix,
                axes=axes - {"keys"},
                scores=kind,
                visible=visible,
            )  # (tiles, P) each
            for axis, tiles in found.items():
                maps[axis] += tiles[..., None]
        for axis, tiles in maps.items():
            carried = filled(family.tokens(tiles, inputs), grids)
            vectors = carried if axis == "keys" else [table.squeeze(1) for table in carried]
            learned[Tap(block, axis, kind)] = vectors
    return learned
