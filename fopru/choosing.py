"""From a pruner and an encoded picture to what is kept of it, with each promise checked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fopru.encoding import Encoded, EncodedImage, TowerPass
from fopru.families import Family, Grid, UnsupportedModelError
from fopru.picking import owners
from fopru.pruned import PrunedImage, check_entered
from fopru.tapping import Attention


class Tower(Family):
    """One attention block of any vision tower, each patch of which is a visual token: what there is
    to ask where an engine has no model of transformers."""

    title = "one attention block"
    notes = "queries and keys, without a model"
    heads = 0

    def __init__(self, heads: int, n_prefix: int):
        self.heads, self.n_prefix = heads, n_prefix

    @property
    def tower(self) -> Tower:
        return self

    def block(self, layer: int | None) -> int:
        if layer is not None:
            raise ValueError(f"layer={layer}: the queries and keys say what is read; leave it out.")
        return 0

    def nearest_block(self, share: float) -> int:
        raise UnsupportedModelError("a method that reads several blocks was given one.")

    def features(self, output: list[Tensor], sizes: list[int]) -> list[Tensor]:
        return output

    def tokens(self, maps: list[Tensor], inputs: Any) -> list[Tensor]:
        return maps


@torch.no_grad()
def choose(
    pruner: Any,
    query: Tensor,
    key: Tensor,
    scaling: float,
    n_prefix: int,
    grid: Grid,
    features: Tensor,
) -> Tensor:
    """Return the places that a pruner keeps of one picture, from queries and keys: no model is
    needed, so that this works in any engine.

    Args:
        pruner: A method that selects tokens, from one block or from the features.
        query, key: (h, T, d) of the block whose output the model uses, after whatever the layer
            does to them (norms, rotary); T = n_prefix + N.
        scaling: The factor on query . key.
        n_prefix: The number of tokens before the patches: 1 for a CLS token, else 0.
        grid: Where the N tokens sit: one view, without newline tokens.
        features: (N, d): the tokens as the language model would get them.

    Returns:
        (k,) int64 on the CPU, sorted; k is `pruner.n_keep(grid)`.

    Raises:
        ValueError: the method needs something else, or the shapes do not match.

    Example:
        >>> grid = Grid((View(24, 24),))
        >>> choose(fopru.FoPru(0.25), query, key, 64**-0.5, 1, grid, features)
    """
    why = refusal(pruner) or ("reads the tower's features" if "vision" in pruner.needs else None)
    if why:
        raise ValueError(f"pruner: method {pruner.name!r} {why}, which `choose` does not have.")
    sizes = [query.shape[1] - n_prefix, key.shape[1] - n_prefix, len(features), grid.n_tokens]
    if len(set(sizes)) > 1 or [view.newline for view in grid.views] != [False]:
        raise ValueError(
            "query, key, features and grid: must have the same N tokens in one view without "
            f"newlines; they have {', '.join(map(str, sizes))}, and the grid {grid.views}."
        )
    family = Tower(len(query), n_prefix)
    noted = {0: [Attention(query[None], key[None], scaling)]}
    seen = TowerPass(family, {}, [grid], [0], [features], pruner.taps(family), noted, [], [None])
    (image,) = seen.scored().images
    return pruned_image(pruner, image)[0].kept


def refusal(pruner: Any) -> str | None:
    """Return what a pruner needs beyond a picture's own tokens and attention, or does beyond
    choosing among them, as the end of a sentence that begins with its name; None for nothing."""
    if "pixels" in pruner.needs:
        return "leaves patches out before the vision tower"
    if "layers" in pruner.needs:
        return "drops tokens inside the language model"
    if pruner.asks:
        return "reads the question"
    if not pruner.selects():
        return "makes new tokens"
    if pruner.weights != "none":
        return f"changes the language model's attention (weights={pruner.weights!r})"
    if pruner.per != "view":
        return f"takes videos alone (per={pruner.per!r})"
    return None


@torch.no_grad()
def pruned_images(pruner: Any, encoded: Encoded) -> tuple[tuple[PrunedImage, ...], list[Tensor]]:
    """Return what a pruner keeps of each picture of a batch, and the (k, d) tokens of each.

    Raises:
        UnsupportedModelError: a merging method, on a model whose tokens it cannot make new ones of.
        ValueError: the pruner broke a promise: wrong shapes, places or values.
    """
    pairs = []
    for image in encoded.images:
        check_entered(image, pruner.label if "pixels" in pruner.needs else None)
        if "text" in pruner.needs and image.text is None:
            image = replace(image, text=encoded.text(image.sample))
        pairs.append(pruned_image(pruner, image))
    images, features = zip(*pairs, strict=True)
    return images, list(features)


def pruned_image(pruner: Any, image: EncodedImage) -> tuple[PrunedImage, Tensor]:
    """Return what a pruner keeps of one picture, and its (k, d) tokens."""
    if image.entered is not None:
        return _entered(pruner, image, image.entered.places)
    if not pruner.selects():
        _refuse_what_cannot_merge(pruner, image)
    parts = list(image.parts(pruner.parts(image.grid)))
    sizes = [part.grid.n_tokens for part in parts]
    significance = _significance(pruner, parts)  # (N,)
    scores = [None] * len(parts) if significance is None else significance.split(sizes)
    kept, tokens, owner, done, start = [], [], [], 0, 0
    for part, k, score in zip(parts, pruner.budgets_of(image), scores, strict=True):
        n = part.grid.n_tokens
        if k == n:  # all stay as they are, whatever the method
            places, features, went = torch.arange(n), part.features, None
        else:
            places, features, went = pruner.merge(replace(part, significance=score), k)
        places = places.cpu()
        check_places(pruner, "merge", places, k, n)
        if went is None:
            went = torch.full((n,), -1)
            went[places] = torch.arange(k)
        _check_merged(pruner, features, went, k, n)
        went = went.cpu()
        kept.append(places + start)
        tokens.append(features)
        owner.append(went.where(went < 0, went + done))
        start, done = start + n, done + k
    places, features = torch.cat(kept), torch.cat(tokens)
    weighted = pruner.weights != "none" and pruner.selects()
    pruned = PrunedImage(
        sample=image.sample,
        kept=places,
        significance=significance,
        grid=image.grid,
        owner=owners(image.features, places).cpu() if weighted else torch.cat(owner),
    )
    if pruner.weights != "none" and not pruned.mass.all():
        raise ValueError(
            f"weights={pruner.weights!r}: {type(pruner).__name__}.merge made tokens that no old "
            "one went into, which weigh nothing."
        )
    if image.deep is not None:
        features = torch.cat([features, image.deep[places.to(features.device)]], 1)
    return pruned, features


def _entered(pruner: Any, image: EncodedImage, places: Tensor) -> tuple[PrunedImage, Tensor]:
    """Return what was kept of a picture before the tower: all that went through it."""
    k, n = len(places), image.grid.n_tokens
    check_places(pruner, "enter", places, k, n)
    owner = torch.full((n,), -1)
    owner[places] = torch.arange(k)
    return PrunedImage(image.sample, places, None, image.grid, owner), image.whole


def _significance(pruner: Any, parts: list[EncodedImage]) -> Tensor | None:
    """(N,) float32 on the CPU, to which the scores of all parts move at once."""
    scores = [pruner.score(part) for part in parts]
    if scores[0] is None:
        return None
    for part, score in zip(parts, scores, strict=True):
        if score.shape != (part.grid.n_tokens,):
            raise ValueError(
                f"{type(pruner).__name__}.score must return one value for each of "
                f"{part.grid.n_tokens} visual tokens; got shape {tuple(score.shape)}."
            )
    significance = torch.cat(scores).float().cpu()
    if not (finite := significance.isfinite()).all():
        raise ValueError(
            f"{type(pruner).__name__}.score gave NaN or infinity for {int((~finite).sum())} of "
            f"{len(finite)} visual tokens, so that they cannot be ranked."
        )
    return significance


def _refuse_what_cannot_merge(pruner: Any, image: EncodedImage) -> None:
    """Refuse a picture whose tokens this merging method cannot make new ones of."""
    title, projects = image.family.title, "vision" in pruner.needs
    if image.deep is not None:
        why = f"the first layers of {title} want features that new tokens do not have"
    elif projects and any(view.newline for view in image.grid.views):
        why = "this family has newline tokens, which have none of the tower's features"
    elif projects and image.family.merges:
        why = f"{title} makes one token of several patches of the tower"
    else:
        return
    raise UnsupportedModelError(
        f"method {pruner.name!r} makes new tokens, and {why}: it is undefined here."
    )


def check_places(pruner: Any, function: str, kept: Tensor, k: int, n: int) -> None:
    """Check that a method gave k sorted, distinct places below n."""
    inside = kept.shape == (k,) and kept[0] >= 0 and kept[-1] < n
    if not inside or not (kept.diff() > 0).all():
        raise ValueError(
            f"{type(pruner).__name__}.{function} must return {k} sorted, distinct indices below "
            f"{n}; got {kept}."
        )


def _check_merged(pruner: Any, features: Tensor, owner: Tensor, k: int, n: int) -> None:
    if len(features) != k or owner.shape != (n,) or owner.min() < -1 or owner.max() >= k:
        raise ValueError(
            f"{type(pruner).__name__}.merge must return {k} tokens, and for each of {n} old ones "
            f"which of these it went into or -1; got {len(features)}, and {owner}."
        )
