"""What is compared: methods, each at every budget and with every seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from fopru.arguments import check_integer, check_list, hint
from fopru.evaluation.controls import BLIND, CONTROLS, Later, Shuffled
from fopru.families import Family
from fopru.pruner import METHODS, Pruner

RETENTIONS = (0.5, 0.25, 0.1)
"""The shares that are compared where neither `retentions` nor `tokens` are given."""

Method = str | Pruner | Later | Shuffled
"""What `evaluate` compares: a name, a pruner, or a pruner under a control."""


@dataclass(frozen=True, eq=False)
class Setting:
    """One cell of the comparison: a method at one retention with one seed."""

    method: str
    """What the table calls the method."""
    pruner: Pruner
    retention: float | None
    """None where a number of tokens was asked for, or nothing."""
    seed: int = 0
    blind: bool = False
    """Whether the true picture is not shown."""
    later: bool = False
    """Whether the next question on the same picture decides what is kept."""
    shuffled: bool = False
    """Whether the kept tokens lose their order."""

    @property
    def cell(self) -> tuple[str, float | None, int | None, int]:
        """The place of the setting in the table: method, retention, number of tokens and seed."""
        return self.method, self.retention, self.budget, self.seed

    @property
    def budget(self) -> int | None:
        """The number of tokens that was asked for, or None."""
        return self.pruner.tokens

    def row(self, family: Family) -> dict[str, Any]:
        """Return what a row of results says of its setting, for models of a family."""
        return {
            "method": self.method,
            "retention": self.retention,
            "budget": self.budget,
            "attention": self.pruner.attended(family),
            "positions": self.pruner.numbering(family),
            "seed": self.seed,
        }

    def description(self) -> list[Any]:
        """Return all that this cell says of its rows, for the keys of `fopru.evaluation.keys`."""
        kind = type(self.pruner)
        names = (self.method, kind.__module__, kind.__qualname__, repr(self.pruner))
        return [*names, self.retention, self.seed, self.blind, self.later, self.shuffled]


def label(method: Pruner | Later | Shuffled) -> str:
    """Return what tables call a method: the pruner's label, with "-later" or "-shuffled" if it is
    under a control."""
    if isinstance(method, Later | Shuffled):
        return f"{label(method.pruner)}-{type(method).__name__.lower()}"
    return method.label


def as_pruner(name: str, allowed: Mapping[str, type[Pruner]], **arguments: Any) -> Pruner:
    """Return the pruner of a registered name.

    Raises:
        ValueError: A name that is not among the allowed ones, or arguments that it does not take.
    """
    if name not in allowed:
        raise ValueError(
            f"methods={name!r}: there is no such method.{hint(name, allowed)} Those there are: "
            f"{', '.join(allowed)}."
        )
    return allowed[name](**arguments)


def settings(
    methods: Iterable[Method] | Mapping[str, Method],
    retentions: Iterable[float] | None = None,
    positions: str | None = None,
    seeds: Iterable[int] = (0,),
    tokens: Iterable[int] | None = None,
) -> list[Setting]:
    """Return every method at every budget, and those that draw at random with every seed.

    Args:
        methods, retentions, positions, seeds, tokens: As for `evaluate`.

    A method in which each picture says itself how much is kept has one cell, without a budget.

    Raises:
        ValueError: An unknown method, two of one label, one with `tokens` of its own or that takes
            none, a retention outside (0, 1], tokens below 1, both of them, anything twice, or a
            single value where a list is meant.
    """
    budgets = _budgets(retentions, tokens)
    numbers = list(distinct("seeds", seeds))
    for seed in numbers:
        check_integer("seeds", seed)
    cells = []
    for name, method in _labelled(methods).items():
        later, shuffled = isinstance(method, Later), isinstance(method, Shuffled)
        pruner = method.pruner if later or shuffled else method
        if pruner.tokens is not None:
            raise ValueError(
                f"methods: {name!r} has tokens={pruner.tokens}, and here arguments beside the "
                "methods say how much is kept, `retentions` or `tokens`: leave it out."
            )
        seeded = "seed" in {field.name for field in fields(pruner)}
        own = budgets if pruner.budgeted else [{}]
        if not own or (seeded and not numbers):
            empty = "seeds" if own else "retentions" if tokens is None else "tokens"
            raise ValueError(f"{empty}=[]: {name!r} needs at least one.")
        changes = {} if positions is None else {"positions": positions}
        for budget in own:
            for seed in numbers if seeded else (0,):
                drawn = {"seed": int(seed)} if seeded else {}
                cell = replace(pruner, **budget, **changes, **drawn)
                kept = cell.retention, int(seed)
                cells.append(Setting(name, cell, *kept, False, later, shuffled))
    return cells


def _budgets(
    retentions: Iterable[float] | None, tokens: Iterable[int] | None
) -> list[dict[str, Any]]:
    """What a pruner takes, for each budget."""
    if retentions is not None and tokens is not None:
        raise ValueError(
            f"retentions={retentions!r} and tokens={tokens!r}: give one of them, not both."
        )
    if tokens is not None:
        return [{"retention": None, "tokens": kept} for kept in distinct("tokens", tokens)]
    shares = distinct("retentions", RETENTIONS if retentions is None else retentions)
    return [{"retention": float(share)} for share in shares]


def _labelled(methods: Iterable[Method] | Mapping[str, Method]) -> dict[str, Any]:
    """Return each label -> pruner, or pruner under a control."""
    if isinstance(methods, Mapping):
        pairs = list(methods.items())
    else:
        check_list("methods", methods)
        pairs = [(None, method) for method in methods]
    found: dict[str, Any] = {}
    for name, method in pairs:
        match method:
            case str():
                method = as_pruner(method, {**METHODS, **CONTROLS})
            case Pruner() | Later() | Shuffled():
                pass
            case _:
                raise ValueError(
                    f"methods: {method!r} is neither a name nor a pruner, such as fopru.FoPru()."
                )
        name = label(method) if name is None else name
        if not isinstance(name, str) or name in ("full", *BLIND):
            raise ValueError(f"methods: {name!r} cannot be a label: choose another text.")
        if name in found:
            raise ValueError(
                f"methods: two of them are called {name!r}: give each a label of its own, as in "
                "{'label': pruner}."
            )
        found[name] = method
    return found


def distinct(argument: str, value: Any) -> list[Any]:
    """Return the values of an argument that takes a list, each of which may stand there once.

    Raises:
        ValueError: A single text, number or object where a list is meant, or a value twice.
    """
    check_list(argument, value)
    values = list(value)
    if len(set(values)) < len(values):
        raise ValueError(f"{argument}={values}: each may stand there once.")
    return values
