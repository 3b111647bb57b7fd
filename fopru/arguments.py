"""Checks of arguments. Each raises an error with the argument, its value and what is allowed."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


def check_integer(argument: str, value: Any, minimum: int | None = None) -> None:
    """Check that a value is an integer, and not below a minimum.

    Raises:
        ValueError: the value is not an integer (a bool is none), or it is below the minimum.
    """
    if (
        not isinstance(value, numbers.Integral)
        or isinstance(value, bool)
        or (minimum is not None and value < minimum)
    ):
        least = "" if minimum is None else f" of at least {minimum}"
        raise ValueError(f"{argument}={value!r}: must be an integer{least}.")


def check_number(argument: str, value: Any, minimum: float = 0, included: bool = True) -> None:
    """Check that a value is a finite number, and not below a minimum.

    Args:
        argument: The name that the error gives.
        value: What the user gave.
        minimum: The least number that is allowed.
        included: Whether the minimum itself is allowed.

    Raises:
        ValueError: the value is not a finite number (a bool is none), or it is too small.
    """
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not minimum <= value < math.inf or (value == minimum and not included):
        least = "of at least" if included else "above"
        raise ValueError(f"{argument}={value!r}: must be a number {least} {minimum}.")


def check_share(argument: str, value: Any, interval: str = "[0, 1]") -> None:
    """Check that a value is a number between 0 and 1.

    Args:
        argument: The name that the error gives.
        value: What the user gave.
        interval: How it is written: "[0, 1]", "(0, 1]", "[0, 1)" or "(0, 1)". A round bracket
            leaves out its end.

    Raises:
        ValueError: the value is not a number (a bool is none), or it is outside of the interval.
    """
    ends = {end for end, bracket in ((0, interval[0]), (1, interval[-1])) if bracket in "()"}
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not 0 <= value <= 1 or value in ends:
        raise ValueError(f"{argument}={value!r}: must be a number in {interval}.")


def check_choice(argument: str, value: Any, allowed: Iterable[Any]) -> None:
    """Check that a value is one of those that are allowed.

    Raises:
        ValueError: The value is none of them; the error names all of them, and the closest one.
    """
    allowed = tuple(allowed)
    if value not in allowed:
        names = ", ".join(map(repr, allowed))
        raise ValueError(f"{argument}={value!r}: must be one of {names}.{hint(value, allowed)}")


def check_list(argument: str, value: Any) -> None:
    """Check that a value is a list or another iterable, and not a single string.

    Raises:
        ValueError: the value is a string, whose characters would be taken for its items, or it is
            no iterable.
    """
    if isinstance(value, str | bytes):
        raise ValueError(f"{argument}={value!r}: must be a list; write [{value!r}].")
    if not isinstance(value, Iterable):
        raise ValueError(f"{argument}={value!r}: must be a list.")


def hint(value: Any, allowed: Iterable[Any]) -> str:
    """A closing sentence that names the allowed string closest to a value; "" if none is close."""
    near = get_close_matches(str(value), [a for a in allowed if isinstance(a, str)], 1)
    return f" Did you mean {near[0]!r}?" if near else ""
