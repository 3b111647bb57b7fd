"""From what an engine or a request asks for to a pruner, with every refusal in one sentence."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, PreTrainedConfig

from fopru.arguments import check_choice, hint
from fopru.choosing import refusal
from fopru.encoding import VISION, Tap
from fopru.families import Family, Grid, UnsupportedModelError
from fopru.methods import METHODS
from fopru.pruner import Pruner
from fopru.serving.vllm import TESTED

PER_REQUEST = ("retention", "tokens", "strategy")
"""What a request may ask for; the method and all else belong to the engine."""


def adapter(config: PreTrainedConfig) -> Family:
    """Return the adapter for a configuration alone: its model has no weights, and says where
    visual tokens sit and which block is read."""
    with torch.device("meta"):
        return Family.of(AutoModelForImageTextToText.from_config(config))


def default(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the engine's own settings, from `--hf-overrides '{"fopru": {...}}'`."""
    settings = getattr(config, "fopru", None)
    if not isinstance(settings, Mapping):
        raise ValueError(
            f"fopru={settings!r}: start the engine with settings of a pruner, as --hf-overrides "
            '\'{"architectures": [...], "fopru": {"retention": 0.25}}\'.'
        )
    return dict(settings)


def settled(config: PreTrainedConfig, asked: Any) -> dict[str, Any]:
    """Return the settings that hold for one request: the engine's, and what it asks for instead.

    Raises:
        ValueError: It asks for what no request may ask for, or for a bad budget.
    """
    if not isinstance(asked, Mapping):
        raise ValueError(
            f'fopru={asked!r}: a request\'s settings must be a table, such as {{"retention": 0.5}}.'
        )
    settings = default(config)
    if asked == settings:
        asked = {}  # settled already
    for name in asked:
        if name not in PER_REQUEST:
            raise ValueError(
                f"fopru: {name}={asked[name]!r} is not a request's to set; it may set "
                f"{', '.join(PER_REQUEST)}.{hint(name, PER_REQUEST)}"
            )
    if "retention" in asked or "tokens" in asked:
        settings.pop("retention", None)
        settings.pop("tokens", None)
    settings |= asked
    pruner_of(settings)
    return dict(sorted(settings.items()))  # two ways of asking the same are one to the caches


def pruner_of(settings: Mapping[str, Any]) -> Pruner:
    """Return the pruner of these settings, "fopru" where they name no method.

    Raises:
        ValueError: An unknown method, an option that it does not take or a value that is not
            allowed.
        UnsupportedModelError: A method that cannot be served, with the reason.
    """
    options = dict(settings)
    name = options.pop("method", "fopru")
    check_choice("fopru: method", name, tuple(METHODS))
    known = [field.name for field in fields(METHODS[name])]
    for option in options:
        if option not in known:
            raise ValueError(
                f"fopru: method {name!r} takes no {option!r}; it takes {', '.join(known)}."
                f"{hint(option, known)}"
            )
    pruner = METHODS[name](**options)
    if why := refusal(pruner):
        raise UnsupportedModelError(
            f"fopru: method {name!r} cannot be served: it {why}, and an engine chooses once per "
            "picture, before the prompt is known."
        )
    return pruner


def check_engine(pruner: Pruner, family: Family, version: str) -> None:
    """Check that an engine can do what its pruner asks of this family.

    Warns where this version of vLLM is none that fopru was tested with.

    Raises:
        UnsupportedModelError: Positions that the engine does not give.
    """
    if pruner.positions not in (None, family.positions):
        raise UnsupportedModelError(
            f"fopru: positions={pruner.positions!r}: vLLM numbers visual tokens of {family.title} "
            f"as positions={family.positions!r} does."
        )
    if ".".join(version.split(".")[:2]) not in TESTED:
        warnings.warn(
            f"fopru was tested with vLLM {', '.join(TESTED)}, and this is {version}: "
            "`fopru serve-check MODEL PICTURES` says whether it prunes as transformers does.",
            stacklevel=2,
        )


def check_blocks(pruner: Pruner, taps: Iterable[Tap], n_blocks: int) -> list[int]:
    """Return the blocks of the vision tower that are read, in order.

    Args:
        pruner: The method that reads them.
        taps: What it reads.
        n_blocks: The number of blocks that vLLM builds.

    Raises:
        UnsupportedModelError: one of them is not built.
    """
    blocks = sorted({tap.block for tap in taps if tap != VISION})
    if blocks and blocks[-1] >= n_blocks:
        raise UnsupportedModelError(
            f"fopru: method {pruner.name!r} reads block {blocks[-1]} of the vision tower, and vLLM "
            f"builds blocks 0 to {n_blocks - 1}, up to the one whose output the model uses: leave "
            "`layer` out."
        )
    return blocks


def budget(pruner: Pruner, grid: Grid) -> Tensor:
    """Write down what a picture keeps, (4,) float64: its number of tokens; then the pruner's share,
    its number of tokens (NaN for what was not given) and whether whole rows stay."""
    row = getattr(pruner, "strategy", None) == "row"
    given = (torch.nan if x is None else x for x in (pruner.share, pruner.tokens))
    return torch.tensor([pruner.n_keep(grid), *given, row], dtype=torch.float64)


def n_kept(budget: Tensor) -> int:
    """Return how many tokens a picture keeps, from what `budget` wrote."""
    return int(budget[0])


def budgeted(pruner: Pruner, budget: Tensor) -> Pruner:
    """Return the pruner with a picture's own budget, from what `budget` wrote."""
    _, share, tokens, row = budget.tolist()
    own: dict[str, Any] = {"strategy": "row" if row else "rank"}
    if not hasattr(pruner, "strategy"):
        own = {}
    if tokens == tokens:
        return replace(pruner, retention=None, tokens=int(tokens), **own)
    return replace(pruner, retention=share, tokens=None, **own)
