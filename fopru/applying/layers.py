"""What a layer of a language model gets, read in one place.

A hook that lives on an argument which the installed transformers has renamed must not go on without
it: everything that is read of a layer's call goes through here, and what is missing raises.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from fopru.applying.conversation import NAMES
from fopru.versions import moved


@dataclass
class LayerCall:
    """The arguments of one call of a decoder layer, which can be changed.

    Raises:
        UnsupportedModelError: the layer is called without one that pruning inside the language
            model needs: this version of transformers has moved it.
    """

    layer: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __post_init__(self):
        self.kwargs = dict(self.kwargs)
        if not self.args or not isinstance(self.args[0], Tensor):
            raise self._missing("hidden states as its first argument")
        for name in ("attention_mask", "position_embeddings"):
            if name not in self.kwargs:
                raise self._missing(name)
        names = [name for name in NAMES if name in self.kwargs]
        if not names:
            raise self._missing(" or ".join(NAMES))
        self.cache_name = names[0]

    def _missing(self, what: str) -> Exception:
        return moved(f"{type(self.layer).__name__} is called without {what}")

    @property
    def hidden(self) -> Tensor:
        """(B, L, d) hidden states."""
        return self.args[0]

    @hidden.setter
    def hidden(self, hidden: Tensor) -> None:
        self.args = (hidden, *self.args[1:])

    @property
    def cache(self) -> Cache | None:
        return self.kwargs[self.cache_name]

    @property
    def mask(self) -> Tensor | None:
        """(B, 1, Q, K), (B, K), or None where each token sees those before it."""
        return self.kwargs["attention_mask"]

    @mask.setter
    def mask(self, mask: Tensor | None) -> None:
        self.kwargs["attention_mask"] = mask

    @property
    def waves(self) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the rotary embedding, (B or 1, L, d) each."""
        return self.kwargs["position_embeddings"]

    @waves.setter
    def waves(self, waves: tuple[Tensor, Tensor]) -> None:
        self.kwargs["position_embeddings"] = waves

    @property
    def positions(self) -> Tensor | None:
        """(B or 1, L) position ids, where the layer gets any: Ministral 3 scales by them."""
        return self.kwargs.get("position_ids")

    @positions.setter
    def positions(self, positions: Tensor) -> None:
        if self.positions is not None:
            self.kwargs["position_ids"] = positions

    def attend(self) -> None:
        """Run the layer's attention on its input, leaving the cache as it is."""
        if not hasattr(self.layer, "self_attn") or not hasattr(self.layer, "input_layernorm"):
            raise moved(f"{type(self.layer).__name__} has no self_attn or no input_layernorm")
        hidden = self.layer.input_layernorm(self.hidden)
        self.layer.self_attn(hidden, **(self.kwargs | {self.cache_name: None}))


def waves_at(decoder: PreTrainedModel, i: int, like: Tensor, places: Tensor) -> tuple[Tensor, ...]:
    """Rotary embeddings of the positions (B, L) for layer i, (B, L, d) each.

    Raises:
        UnsupportedModelError: the decoder has none, or takes other arguments.
    """
    rotary = getattr(decoder, "rotary_emb", None)
    names = () if rotary is None else inspect.signature(rotary.forward).parameters
    if "position_ids" not in names:
        raise moved(f"{type(decoder).__name__} has no rotary_emb that takes position_ids")
    if "layer_type" in names:  # Gemma 3: the layers with a window have their own
        return rotary(like, places, decoder.config.layer_types[i])
    return rotary(like, position_ids=places)


def window(layer: nn.Module) -> int | None:
    """The last tokens that a layer sees; None where it sees all."""
    return getattr(layer.self_attn, "sliding_window", None)
