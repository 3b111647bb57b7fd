"""Retention that adapts to the picture, and has the promised mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, ProcessorMixin

from fopru.arguments import check_choice, check_list
from fopru.encoding import EncodedImage, encode
from fopru.evaluation import Example
from fopru.evaluation.asking import inputs_of
from fopru.evaluation.controls import same_picture
from fopru.evaluation.tasks import in_memory
from fopru.methods.compose import Budget, Compose, as_shares
from fopru.picking import RELATIVE, first, unit
from fopru.redundancy import effective_rank

Picture = tuple[tuple[int, float], ...]
"""The number of tokens and the measure of each part of a picture that has a budget of its own."""


@dataclass(frozen=True)
class Adaptive(Budget):
    """Keep the share `retention` of the tokens in the mean over pictures: more of a picture that
    has more in it.

    The rule is ours. A view keeps a number of tokens that is proportional to its measure, rounded,
    and at least 1 and at most all. The factor is the one for which the mean share over some
    pictures is `retention`; `fopru.calibrate` measures these. The idea that pictures need different
    numbers of tokens, and that effective rank and entropy measure this, is from AgilePruner (ICLR
    2026, arXiv 2603.01236), which mixes attention and diversity by these two.

    Args:
        by: "rank" measures the effective rank of the tokens' directions: the exponential of the
            entropy of their singular values (`fopru.redundancy.effective_rank`). "entropy" measures
            the exponential of the entropy of the scores, as shares of their sum. Both are a number
            of tokens: as many as would differ from each other, or share the significance, equally.
        pictures: What `fopru.calibrate` measured. Without it nothing can be pruned.
    """

    by: str = "rank"
    pictures: tuple[Picture, ...] = ()

    def __post_init__(self):
        check_choice("by", self.by, ("rank", "entropy"))

    @property
    def scored(self) -> bool:
        """Whether it reads scores."""
        return self.by == "entropy"

    def __str__(self) -> str:
        return f"Adaptive(by={self.by!r})"

    def measure(self, image: EncodedImage) -> float:
        """Return the effective number of a view's tokens, in proportion to which its budget is."""
        if self.by == "rank":
            return effective_rank(unit(image.features))
        return torch.special.entr(as_shares(image)).sum().exp().item()

    def count(self, image: EncodedImage, share: float) -> int:
        if not self.pictures:
            raise ValueError(
                f"budget={self}: what the mean is taken over is not known; use the pruner that "
                "fopru.calibrate(model, processor, examples, pruner) returns."
            )
        wanted = factor(self.pictures, share) * self.measure(image)
        return max(1, min(image.grid.n_tokens, int(wanted + 0.5)))


@lru_cache(maxsize=64)
def factor(pictures: tuple[Picture, ...], share: float) -> float:
    """Return the number of tokens for each unit of the measure with which these pictures keep a
    share of their tokens in the mean, as nearly as whole tokens allow.

    The mean grows by steps as the factor does. What is returned lies in the middle between two
    steps, so that rounding in the measures changes nothing.
    """
    weights = [1 / len(pictures) / sum(n for n, _ in picture) for picture in pictures]
    parts = [(*part, w) for p, w in zip(pictures, weights, strict=True) for part in p]
    steps = torch.cat([(torch.arange(1, n).double() + 0.5) / size for n, size, _ in parts])  # (S,)
    more = torch.cat([steps.new_full((n - 1,), weight) for n, _, weight in parts])
    steps, order = steps.sort()
    least = sum(weight for *_, weight in parts)  # one token of each part stays in any case
    mean = F.pad(more[order].cumsum(0), (1, 0)) + least  # (S + 1,) before and after each step
    low = F.pad(steps, (1, 0))
    high = torch.cat([steps, 2 * low[-1:] + 1])
    off = (mean - share).abs().where(high > low * (1 + RELATIVE), torch.inf)
    best = first(-off[None])
    return ((low[best] + high[best]) / 2).item()


@torch.no_grad()
def calibrate(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    examples: Sequence[Example],
    pruner: Compose,
) -> Compose:
    """Measure pictures, so that a pruner with an `Adaptive` budget keeps its retention in the mean
    over them.

    Args:
        model, processor: As for `fopru.evaluate`.
        examples: Such as `fopru.pocket.benchmark("validation")`: of pictures that look like those
            to be pruned later. A picture counts as often as it is asked about, so that the table of
            `fopru.evaluate` on the same questions shows the promised mean.
        pruner: Such as `fopru.Compose(0.25, pick=fopru.MaxMin(), budget=fopru.Adaptive())`.

    Returns:
        The same pruner, which keeps its retention in the mean over these questions, to within half
        a token; so it does with any other retention that it is given later.

    Raises:
        ValueError: The pruner has no `Adaptive` budget, there are no examples or what is none, or a
            picture cannot be read.
        UnsupportedModelError: There is no adapter for the model, or the pruner is undefined on it.
    """
    if not isinstance(pruner, Compose) or not isinstance(pruner.budget, Adaptive):
        raise ValueError(f"pruner={pruner!r}: must be a fopru.Compose with an Adaptive budget.")
    check_list("examples", examples)
    if not examples:
        raise ValueError("examples=[]: there is no picture to measure.")
    for e in examples:
        if not isinstance(e, Example):
            raise ValueError(f"examples: {e!r} is no fopru.evaluation.Example.")
    keys = [i if pruner.asks else same_picture(e) for i, e in enumerate(examples)]
    measured: dict[object, Picture] = {}
    for key, e in zip(keys, examples, strict=True):
        if key not in measured:
            whole = replace(e, image=in_memory(e.image))
            measured[key] = _measured(model, processor, whole, pruner)
    pictures = tuple(measured[key] for key in keys)
    return replace(pruner, budget=replace(pruner.budget, pictures=pictures))


def _measured(
    model: PreTrainedModel, processor: ProcessorMixin, example: Example, pruner: Compose
) -> Picture:
    inputs = inputs_of(processor, [example]).to(model.device)
    encoded = encode(model, inputs, [pruner])
    found = []
    for image in encoded.images:
        if pruner.asks:
            image = replace(image, text=encoded.text(image.sample))
        for part in pruner.scored(image):
            n = part.grid.n_tokens
            found.append((n, pruner.budget.measure(part) if n > 1 else 1.0))
    return tuple(found)
