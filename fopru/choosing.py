"""From a pruner and an encoded picture to what is kept of it, with each promise checked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fopru.encoding import Encoded, EncodedImage
from fopru.families import UnsupportedModelError
from fopru.picking import owners
from fopru.pruned import PrunedImage, check_entered


@torch.no_grad()
def choose(pruner: Any, encoded: Encoded) -> tuple[tuple[PrunedImage, ...], list[Tensor]]:
    """Return what a pruner keeps of each picture, and the (k, d) tokens of each.

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
