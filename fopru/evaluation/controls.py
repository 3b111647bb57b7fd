"""What stands beside every method: the questions asked blind, and the evidence kept first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor

from fopru.encoding import EncodedImage, Tap
from fopru.evaluation.tasks import Example
from fopru.pruner import Pruner

EVIDENCE = Tap(-1, "evidence")
"""Where the share of each token that evidence covers stands among an image's scores."""


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


@dataclass(frozen=True)
class Oracle(Pruner):
    """Keep the tokens under the evidence of the answer first, then random ones: what a method that
    knew where to look could do. Only `fopru.evaluate` can tell it.

    Args:
        seed: of the permutation by which the others follow.
    """

    seed: int = 0

    def score(self, image: EncodedImage) -> Tensor:
        return image.scores[EVIDENCE]

    def select(self, image: EncodedImage, k: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        shuffled = torch.randperm(image.grid.n_tokens, generator=generator)
        cover = image.significance[shuffled.to(image.significance.device)]
        return shuffled[cover.sort(descending=True, stable=True).indices.cpu()[:k]].sort().values
