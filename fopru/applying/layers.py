"""What a layer of a language model gets, read in one place.

A hook that lives on an argument which the installed transformers has renamed must not go on without
it: everything that is read of a layer's call goes through here, and what is missing raises.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from fopru.applying.conversation import NAMES
from fopru.versions import UnsupportedModelError, moved


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
        """(B, L, d): the hidden states."""
        return self.args[0]

    @hidden.setter
    def hidden(self, hidden: Tensor) -> None:
        self.args = (hidden, *self.args[1:])

    @property
    def cache(self) -> Cache | None:
        """The KV cache, or None."""
        return self.kwargs[self.cache_name]

    @property
    def mask(self) -> Tensor | None:
        """The attention mask: (B, 1, Q, K) or (B, K); None where each token sees those before
        it."""
        return self.kwargs["attention_mask"]

    @mask.setter
    def mask(self, mask: Tensor | None) -> None:
        self.kwargs["attention_mask"] = mask

    @property
    def waves(self) -> tuple[Tensor, Tensor]:
        """The cosines and sines of the rotary embedding, (B or 1, L, d) each."""
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
        """Run the layer's attention on its input, and leave the KV cache as it is."""
        if not hasattr(self.layer, "input_layernorm"):
            raise moved(f"{type(self.layer).__name__} has no input_layernorm")
        hidden = self.layer.input_layernorm(self.hidden)
        self.layer.self_attn(hidden, **(self.kwargs | {self.cache_name: None}))


def waves_at(decoder: PreTrainedModel, i: int, like: Tensor, places: Tensor) -> tuple[Tensor, ...]:
    """Compute the rotary embeddings that layer i adds at the positions (B, L): (B, L, d) each.

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


def in_place_of_one_rotary(decoder: PreTrainedModel) -> str | None:
    """Say what a decoder has in place of one rotary embedding for all of its layers that attend;
    None where it has just that."""
    rotary, config = getattr(decoder, "rotary_emb", None), decoder.config
    names = () if rotary is None else inspect.signature(rotary.forward).parameters
    if "position_ids" not in names:
        return "no rotary embedding that takes position ids"
    if "layer_type" in names:
        return "a rotary embedding for each kind of layer"
    kinds = set(getattr(config, "layer_types", None) or ()) - {"linear_attention"}
    if len(kinds) > 1 or not all(getattr(config, "no_rope_layers", None) or ()):
        return "layers of several kinds, of which some may have no rotary embedding"
    place = torch.zeros(1, 1, dtype=torch.int64, device=decoder.device)
    if not isinstance(rotary(place.float()[None], position_ids=place), tuple):
        return "a rotary embedding that does not give cosines and sines"
    return None


def nearness(decoder: PreTrainedModel, keys: Tensor, queries: Tensor) -> Tensor:
    """Return the mean over the rotary frequencies of the cosine of the angle between the positions
    of each query and each key: (B, Q, P) float32.

    It is made of the decoder's own cosines and sines, divided by their length: so it knows of axes
    (M-RoPE), of scaled frequencies, and of no scale that attention is given with them. Features of
    a head that are not turned do not count.

    Args:
        decoder: One whose layers share a rotary embedding, as `in_place_of_one_rotary` says.
        keys: (..., B or 1, P) position ids; where there are 3 or 4 rows, the last three count.
        queries: (..., B or 1, Q) position ids.
    """
    keys, queries = (p[-3:] if p.dim() == 3 else p for p in (keys, queries.to(keys.device)))
    lead = torch.broadcast_shapes(keys.shape[:-1], queries.shape[:-1])
    places = torch.cat([p.expand(*lead, -1) for p in (keys, queries)], -1)  # (..., B, P + Q)
    like = torch.zeros(1, 1, 1, device=places.device)
    waves = torch.cat(decoder.rotary_emb(like, position_ids=places), -1)  # (B, P + Q, 2 d)
    waves = F.normalize(waves, dim=-1)
    n = keys.shape[-1]
    return waves[:, n:] @ waves[:, :n].transpose(1, 2)


def attends(layer: nn.Module) -> bool:
    """Whether a layer has softmax attention, with keys and values in the cache; a layer with linear
    attention has a state of fixed size in their place."""
    return hasattr(layer, "self_attn")


def window(layer: nn.Module) -> int | None:
    """Return how many of the last tokens a layer that attends sees, or None where it sees all."""
    return getattr(layer.self_attn, "sliding_window", None)


def listed(layers: Iterable[int]) -> str:
    """Layers in words."""
    return ", ".join(map(str, layers))


def placed(stages: dict[int, float], decoder: PreTrainedModel, before: bool) -> dict[int, float]:
    """The stages of a method, each at the layer nearest to its own where tokens can be chosen: by
    the attention of the layer before, or by that of the layer itself. Of two layers equally near it
    is the later one, so that tokens stay longer; a layer that has a stage already is passed over.

    Where all layers attend these are the stages themselves, and a stage keeps its share of the
    depth where a few do. The first layer that attends sees all tokens: by its keys the cache tells
    how long the prompt is.

    Raises:
        UnsupportedModelError: there are too few such layers.
    """
    layers = list(decoder.layers)
    attending = [i for i, layer in enumerate(layers) if attends(layer)]
    there = [i + 1 for i in attending if i + 1 < len(layers)] if before else attending[1:]
    found: dict[int, float] = {}
    for stage, share in sorted(stages.items()):
        if there:
            place = min(there, key=lambda i: (abs(i - stage), -i))
            found[place], there = share, [i for i in there if i > place]
    if len(found) < len(stages):
        raise UnsupportedModelError(
            f"{len(attending)} of the {len(layers)} layers of {type(decoder).__name__} have "
            f"attention to choose tokens by, too few for stages at layers {listed(stages)}."
        )
    return found
