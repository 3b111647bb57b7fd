"""The contract of methods that prune inside the language model: where, and how many."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fopru.applying import Inside, at_work
from fopru.encoding import Encoded
from fopru.families import Family
from fopru.picking import floor_share
from fopru.pruned import PrunedInputs
from fopru.pruner import Pruner


@dataclass(frozen=True)
class InLLMPruner(Pruner):
    """A method that drops visual tokens inside the language model.

    It works in `with pruner(model)` only. `retention` is the share of visual tokens that the last
    layers see; text tokens always stay, and all rows keep their order.

    Tokens are chosen by attention. Where only some layers have any, and the others have linear
    attention (Qwen3.5), each stage is moved to the nearest layer where tokens can be chosen, of two
    equally near the later, so that it keeps its share of the depth; a warning names the layers, and
    so does `session.stages`. The states of earlier layers keep what they have read of all tokens,
    later layers read what is left.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"layers"})
    shares: ClassVar[tuple[str, ...]] = ("view",)

    def __post_init__(self):
        super().__post_init__()
        if self.tokens is not None:
            raise ValueError(
                f"tokens={self.tokens}: methods inside the language model take `retention`."
            )
        if self.weights != "none":
            raise ValueError(
                f"weights={self.weights!r}: {type(self).__name__} drops tokens inside the language "
                "model, where none stands for others; use weights='none'."
            )

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
        """Return each layer that tokens leave on entering it -> the share of all visual tokens that
        go on.

        Raises:
            ValueError: the model has too few layers.
        """
        raise NotImplementedError

    def count(self, n: int, share: float) -> int:
        """Return how many of n visual tokens go on."""
        return floor_share(n, share)

    before: ClassVar[bool] = True
    """Where the scores come from: True for the attention of layer i - 1, if tokens leave on
    entering layer i, False for what layer i's own projections make of its input."""

    def raters(self, hidden: Tensor, visual: Tensor) -> Tensor:
        """Return by whose attention visual tokens are scored: (L,) bool, here the last token.

        Args:
            hidden: (L, d): what the language model's first layer gets for one prompt without its
                padding.
            visual: (L,) bool: True for visual tokens, of which there are some.
        """
        return torch.arange(len(visual), device=visual.device) == len(visual) - 1

    recycle: ClassVar[bool] = False
    """Whether `clusters` makes new tokens of those that would be dropped."""

    def clusters(self, scores: Tensor, hidden: Tensor) -> Tensor:
        """Return what becomes of the n tokens of one picture that do not go on: (n,) int64 places
        among them. Each is averaged with all those that have the same place, and the mean takes the
        slot of the token at that place; -1 is for those that are dropped.

        Args:
            scores: (n,) float32: the attention that they get.
            hidden: (n, d): their hidden states.
        """
        raise NotImplementedError

    def prune(self, model: PreTrainedModel, inputs: Mapping[str, Any]) -> PrunedInputs:
        """Raise ValueError: there are no shorter inputs, since tokens leave later."""
        raise ValueError(
            f"method {self.name!r} drops tokens inside the language model: use "
            "`with pruner(model):` around generate or forward."
        )

    def compact(self, encoded: Encoded) -> PrunedInputs:
        """Raise ValueError, as `prune` does."""
        return self.prune(encoded.family.model, encoded.inputs)

    def __call__(
        self, model: PreTrainedModel, chosen: Inside | None = None
    ) -> AbstractContextManager[Inside]:
        """Prune whatever goes through the model in the block `with pruner(model) as session:`.

        Args:
            chosen: Keep what was kept in that session, of prompts on the same pictures row by row:
                as if these prompts were asked on its cache.
        """
        return at_work(Inside(self, model, chosen))

    def session(self, model: PreTrainedModel) -> Inside:
        return Inside(self, model)
