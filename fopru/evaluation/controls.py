"""The controls that stand beside every method, so that its numbers mean something.

- "none", "grey" and "swapped" ask blind: without a picture, about a grey one, about another one.
- "oracle" keeps the tokens under the evidence first, as if it knew where to look.
- "smaller" shrinks the picture until it has no more patches than are kept, and prunes nothing.
- `Shuffled` takes the order of the kept tokens away.
- `Later` lets another question on the same picture decide what is kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fopru.encoding import EncodedImage, Tap
from fopru.evaluation.keys import picture
from fopru.evaluation.tasks import Example, in_memory
from fopru.families import Grid, UnsupportedModelError
from fopru.pruned import Merged, PrunedInputs
from fopru.pruner import Pruner
from fopru.videos import Video

EVIDENCE = Tap(-1, "evidence")
"""The key in `EncodedImage.learned` of the share of each token's patch that evidence covers,
(N,)."""

PIXELS = Tap(-1, "pixels")
"""The key in `EncodedImage.learned` of the picture's pixels, (3, H, W)."""


def grey(examples: Sequence[Example]) -> list[Example]:
    """Return the same questions about a grey picture, of 336 x 336 pixels where the true one is
    still in a file; or about a grey video, of 8 such frames."""
    shapes = [_shape(e.image) for e in examples]
    blank = {shape: _grey(*shape) for shape in set(shapes)}
    return [
        replace(e, image=blank[shape], evidence=())
        for e, shape in zip(examples, shapes, strict=True)
    ]


def _shape(image: Image.Image | Path | Video) -> tuple[tuple[int, int], int]:
    """Width and height, and frames; 0 frames of a picture."""
    if isinstance(image, Video):
        there = isinstance(image.source, tuple)
        return (image.frames[0].size, len(image.frames)) if there else ((336, 336), 8)
    return (image.size if isinstance(image, Image.Image) else (336, 336)), 0


def _grey(size: tuple[int, int], n_frames: int) -> Image.Image | Video:
    picture = Image.new("RGB", size, "gray")
    return Video([picture] * n_frames) if n_frames else picture


def swapped(examples: Sequence[Example]) -> list[Example]:
    """Return the same questions about another picture of their task, half the task's pictures
    further on. Pictures of the same pixels are one picture. A task's videos are as a task of their
    own.

    Raises:
        ValueError: A task has one picture only, so that there is no other one to show.
    """
    looks: dict[Any, str] = {}
    tasks: dict[tuple[str, str], dict[str, Example]] = {}
    """Task and modality -> look of each of its pictures -> the first question on it."""
    for e in examples:
        if same_picture(e) not in looks:
            looks[same_picture(e)] = _look(e.image)
        tasks.setdefault((e.task, e.modality), {}).setdefault(looks[same_picture(e)], e)
    others: dict[tuple[str, str, str], Example] = {}
    for (task, kind), pictures in tasks.items():
        if len(pictures) < 2:
            word = "picture" if kind == "image" else kind
            raise ValueError(
                f"blind='swapped': task {task!r} has one {word} only, and no other to show."
            )
        names, half = list(pictures), len(pictures) // 2
        for name, other in zip(names, names[half:] + names[:half], strict=True):
            others[task, kind, name] = pictures[other]
    return [
        replace(e, image=others[e.task, e.modality, looks[same_picture(e)]].image, evidence=())
        for e in examples
    ]


def same_picture(e: Example) -> Path | int:
    """Return what questions on one picture share: its file, or the identity of the picture
    itself."""
    return e.image if isinstance(e.image, Path) else id(e.image)


def _look(image: Image.Image | Path | Video) -> str:
    """Return the digest of a picture's pixels, or the path of a file that cannot be read."""
    try:
        return picture(in_memory(image))
    except ValueError:
        return str(image.source if isinstance(image, Video) else image)


BLIND = {"none": list, "grey": grey, "swapped": swapped}
"""The name of each blind control -> a function from questions to the same with the pictures shown
instead."""


@dataclass(frozen=True)
class Oracle(Pruner):
    """Keep the tokens under the evidence of the answer first, then random ones.

    Args:
        seed: The seed of the permutation by which the other tokens follow.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"grid"})
    seed: int = 0

    @property
    def asks(self) -> bool:
        return True

    def score(self, image: EncodedImage) -> Tensor:
        return image.learned[EVIDENCE]

    def select(self, image: EncodedImage, k: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(image.grid.n_tokens, generator=generator)
        cover = image.significance[order.to(image.significance.device)]
        return order[cover.sort(descending=True, stable=True).indices.cpu()[:k]].sort().values


@dataclass(frozen=True)
class Smaller(Pruner):
    """Shrink the picture (bicubic, the tower's position embeddings interpolated) to a grid of the
    same shape with at most k patches, each in the place of the patch at its middle."""

    needs: ClassVar[frozenset[str]] = frozenset({"grid"})
    shares: ClassVar[tuple[str, ...]] = ("view",)

    def budgets(self, grid: Grid) -> list[int]:
        height, width = self._size(grid)
        return [height * width]

    def merge(self, image: EncodedImage, k: int) -> Merged:
        family = image.family
        height, width = self._size(image.grid)
        (view,) = image.grid.views
        if PIXELS not in image.learned or family.merges:
            raise UnsupportedModelError(
                f"'smaller' takes models of which each patch is a token, and {family.title} merges "
                "them: give it smaller pictures instead."
            )
        side = family.config.vision_config.patch_size
        pixels = image.learned[PIXELS][None]  # (1, 3, H, W); a smaller one of a batch is padded
        pixels = pixels[..., : view.height * side, : view.width * side]
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
"""The name of each control that only `fopru.evaluate` can run -> its class."""
for _name, _control in CONTROLS.items():
    _control.name = _name  # not registered: no method for users


@dataclass(frozen=True)
class Shuffled:
    """A method whose kept tokens lose their order before the language model gets them.

    Methods inside the language model drop tokens where they stand, and cannot be shuffled.

    Args:
        pruner: The method, which prunes before the language model.
    """

    pruner: Pruner


@dataclass(frozen=True)
class Later:
    """A method whose kept tokens another question has decided.

    The other question is the next one on the same picture; the first one follows the last. So this
    needs a method that reads the question, and several questions on each picture.

    Args:
        pruner: The method, which reads the question.
    """

    pruner: Pruner


def mixed(k: int, seed: int = 0) -> Tensor:
    """Return the random order that `shuffled` gives k tokens, (k,) int64."""
    return torch.randperm(k, generator=torch.Generator().manual_seed(seed))


def shuffled(pruned: PrunedInputs, seed: int = 0) -> PrunedInputs:
    """Return the same inputs with the kept tokens of each picture in random order.

    Position ids, where there are any, and weights go with their tokens: with "reindex" only the
    order says where a token was, with "preserve" only its position id.
    """
    text: dict[str, Any] = {n: v for n, v in pruned.items() if n != "mm_encoder_outputs"}
    orders = [mixed(len(f), seed) for f in pruned.features]  # each by itself: as in any batch
    features = [f[order.to(f.device)] for f, order in zip(pruned.features, orders, strict=True)]
    visual = text["input_ids"] == pruned.family.image_token_id  # (B, L)
    columns, source = torch.arange(visual.shape[1]), torch.empty(visual.shape, dtype=torch.int64)
    source[:] = columns  # the column that each place gets its values from
    used = [0] * len(visual)
    for image, order in zip(pruned.images, orders, strict=True):
        (places,) = visual[image.sample].cpu().nonzero(as_tuple=True)
        places = places[used[image.sample] :][: len(order)]
        used[image.sample] += len(order)
        source[image.sample, places] = places[order]
    source = source.to(visual.device)
    for name in ("attention_mask", "position_ids"):  # the mask has the weights
        if (values := text.get(name)) is not None:
            moved = values.gather(-1, source.expand_as(values))
            if values.dim() == 3:  # M-RoPE: the first row counts the columns
                moved[0] = values[0]
            text[name] = moved
    return PrunedInputs(text, pruned.family, features, pruned.images, pruned.columns)
