"""What stands beside every method: what a user could do without it, and what it is made of.

- "none", "grey" and "swapped" ask blind: without a picture, about a grey one, about another one.
- "oracle" keeps the tokens under the evidence first, as if it knew where to look.
- "smaller" shrinks the picture until it has no more patches than are kept, and prunes nothing.
- "-shuffled" after a method's name: its tokens lose their order.
- "-later" after one that reads the question: another question on the picture was asked first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fopru.encoding import EncodedImage, Tap
from fopru.evaluation.tasks import Example
from fopru.families import Grid, UnsupportedModelError
from fopru.pruned import PrunedInputs
from fopru.pruner import Merged, Pruner

EVIDENCE = Tap(-1, "evidence")
"""Where the share of each token that evidence covers stands among an image's scores."""

PIXELS = Tap(-1, "pixels")
"""Where its pixels stand, (3, H, W)."""


def grey(examples: Sequence[Example]) -> list[Example]:
    """The same questions about a grey picture, 336 x 336 where the true one is still in a file."""
    sizes = [e.image.size if isinstance(e.image, Image.Image) else (336, 336) for e in examples]
    blank = {size: Image.new("RGB", size, "gray") for size in set(sizes)}
    return [
        replace(e, image=blank[size], evidence=()) for e, size in zip(examples, sizes, strict=True)
    ]


def swapped(examples: Sequence[Example]) -> list[Example]:
    """The same questions about another question's picture: within each task, the one half a task
    further on."""
    places: dict[str, list[int]] = {}
    for i, e in enumerate(examples):
        places.setdefault(e.task, []).append(i)
    out = list(examples)
    for here in places.values():
        half = len(here) // 2
        for i, other in zip(here, here[half:] + here[:half], strict=True):
            out[i] = replace(examples[i], image=examples[other].image, evidence=())
    return out


BLIND = {"none": list, "grey": grey, "swapped": swapped}
"""Name -> the questions with the pictures that are shown instead."""


@dataclass(frozen=True)
class Oracle(Pruner):
    """Keep the tokens under the evidence of the answer first, then random ones.

    Args:
        seed: of the permutation by which the others follow.
    """

    seed: int = 0

    @property
    def asks(self) -> bool:
        return True

    def score(self, image: EncodedImage) -> Tensor:
        return image.scores[EVIDENCE]

    def select(self, image: EncodedImage, k: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(image.grid.n_tokens, generator=generator)
        cover = image.significance[order.to(image.significance.device)]
        return order[cover.sort(descending=True, stable=True).indices.cpu()[:k]].sort().values


@dataclass(frozen=True)
class Smaller(Pruner):
    """Shrink the picture (bicubic, the tower's position embeddings interpolated) to a grid of the
    same shape with at most k patches, each in the place of the patch at its middle."""

    def budgets(self, grid: Grid) -> list[int]:
        height, width = self._size(grid)
        return [height * width]

    def merge(self, image: EncodedImage, k: int) -> Merged:
        family = image.family
        height, width = self._size(image.grid)
        (view,) = image.grid.views
        side = family.config.vision_config.patch_size
        pixels = image.scores[PIXELS][None]  # (1, 3, H, W)
        small = F.interpolate(pixels, (height * side, width * side), mode="bicubic", antialias=True)
        (features,) = family.model.get_image_features(
            pixel_values=small, interpolate_pos_encoding=True, return_dict=True
        ).pooler_output
        rows = ((torch.arange(height) + 0.5) * view.height / height).long()
        columns = ((torch.arange(width) + 0.5) * view.width / width).long()
        kept = (rows[:, None] * view.width + columns).flatten()
        return Merged(kept, features)

    def _size(self, grid: Grid) -> tuple[int, int]:
        """Height and width in patches."""
        if len(grid.views) > 1:
            raise UnsupportedModelError(
                "'smaller' takes models that see a picture as one grid, and this one sees "
                f"{len(grid.views)} views: give it smaller pictures instead."
            )
        (view,), (k,) = grid.views, super().budgets(grid)
        scale = math.sqrt(k / view.n_tokens)
        height, width = (math.floor(round(n * scale, 9)) for n in (view.height, view.width))
        return max(1, height), max(1, width)


CONTROLS = {"oracle": Oracle, "smaller": Smaller}
"""Name -> what only `fopru.evaluate` can do."""


def shuffled(pruned: PrunedInputs, seed: int = 0) -> PrunedInputs:
    """The same with the kept tokens of each picture in random order.

    Position ids, where there are any, go with their tokens: with "reindex" only the order says
    where a token was, with "preserve" only its position id.
    """
    text: dict[str, Any] = {n: v for n, v in pruned.items() if n != "mm_encoder_outputs"}
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(f), generator=generator) for f in pruned.features]
    features = [f[order.to(f.device)] for f, order in zip(pruned.features, orders, strict=True)]
    if text.get("position_ids") is not None:
        text["position_ids"] = _with_tokens(text, pruned, orders)
    return PrunedInputs(text, pruned.family, features, pruned.images)


def _with_tokens(text: Mapping[str, Any], pruned: PrunedInputs, orders: list[Tensor]) -> Tensor:
    """Position ids (B, L') with those of visual tokens in the new orders."""
    positions = text["position_ids"].clone()
    visual = text["input_ids"] == pruned.family.image_token_id
    for image, order in zip(pruned.images, orders, strict=True):
        (places,) = visual[image.sample].nonzero(as_tuple=True)
        positions[image.sample, places] = positions[image.sample, places[order.to(places.device)]]
    return positions
