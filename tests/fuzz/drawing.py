"""A test that draws cases. How many, and which, is said by environment variables.

FOPRU_FUZZ_DRAWS (20) and FOPRU_FUZZ_SEED (0): the same numbers draw the same cases. With
FOPRU_FUZZ_FINDINGS, a file, every draw is made, and all that is wrong goes there, one line of JSON
each.
"""

import json
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass, replace
from random import Random
from typing import Any, NamedTuple

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

DRAWS = int(os.environ.get("FOPRU_FUZZ_DRAWS", "20"))
SEED = int(os.environ.get("FOPRU_FUZZ_SEED", "0"))
FINDINGS = os.environ.get("FOPRU_FUZZ_FINDINGS")
SHRINKING = 10
"""Seconds for making a failing case smaller."""


class Refusal(NamedTuple):
    sentence: str
    """A regular expression that is found in the error's message."""
    reason: str
    when: Callable[[Any], bool]
    """The cases that may be refused so: a sentence elsewhere is untrue."""


def refused(error: Exception, case: Any, table: list[Refusal]) -> Refusal | None:
    """The entry of a table that allows this error for this case."""
    for refusal in table:
        if refusal.when(case) and re.search(refusal.sentence, str(error)):
            return refusal
    return None


class Short:
    """A dataclass whose repr leaves out what is as by default."""

    def __repr__(self) -> str:
        told = (f for f in fields(self) if getattr(self, f.name) != f.default)
        inside = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in told)
        return f"{type(self).__name__}({inside})"


class Draws(Random):
    """Choices of one case; a case is drawn from one seed, so that no draw repeats another's."""

    def once_in(self, n: int) -> bool:
        return self.randrange(n) == 0


def smaller(case: Any) -> Iterator[Any]:
    """Cases that are simpler by one step: a field as by default, an element fewer."""
    for f in fields(case):
        value = getattr(case, f.name)
        if f.default is not MISSING and value != f.default:
            yield replace(case, **{f.name: f.default})
        if isinstance(value, tuple):
            for i in range(len(value) if len(value) > 1 else 0):
                yield replace(case, **{f.name: value[:i] + value[i + 1 :]})
            for i, part in enumerate(value):
                if is_dataclass(part):
                    for less in smaller(part):
                        yield replace(case, **{f.name: (*value[:i], less, *value[i + 1 :])})


def drawn(make, run, forget, table=(), share=1):
    """A test over drawn cases.

    Args:
        make: makes a case of `Draws`.
        run: called with each case; what it raises is a finding, unless the table lists it.
        forget: called after a failure, which may have marked a shared model.
        table: refusals.
        share: one draw of so many is made.
    """

    def fault(case):
        try:
            run(case)
        except Exception as error:
            forget()
            return None if refused(error, case, table) else error
        return None

    def reduced(case, error):
        """The simplest case that is found to fail alike within the time for it."""
        end, going = time.monotonic() + SHRINKING, True
        while going:
            going = False
            for less in smaller(case):
                if time.monotonic() > end:
                    break
                if (found := fault(less)) is not None and type(found) is type(error):
                    case, error, going = less, found, True
                    break
        return case, error

    @seed(SEED)
    @settings(
        max_examples=max(1, DRAWS // share),
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, 2**62).map(lambda n: make(Draws(n))))
    def test(case):
        warnings.simplefilter("ignore")
        if (error := fault(case)) is None:
            return
        case, error = reduced(case, error)
        what = f"{type(error).__name__}: {error}"
        if FINDINGS:
            with open(FINDINGS, "a") as file:
                file.write(json.dumps({"case": repr(case), "way": case.way, "what": what}) + "\n")
            return
        raise AssertionError(f"{case!r}\n{what}") from error

    return test
