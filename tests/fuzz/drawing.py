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
from collections.abc import Callable
from dataclasses import fields
from typing import Any, NamedTuple

from hypothesis import HealthCheck, Phase, given, seed, settings

DRAWS = int(os.environ.get("FOPRU_FUZZ_DRAWS", "20"))
SEED = int(os.environ.get("FOPRU_FUZZ_SEED", "0"))
FINDINGS = os.environ.get("FOPRU_FUZZ_FINDINGS")
SHRINKING = 20
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


def drawn(strategy, run, forget, table=(), share=1):
    """A test over drawn cases.

    Args:
        run: called with each case; what it raises is a finding, unless the table lists it.
        forget: called after a failure, which may have marked a shared model.
        table: refusals.
        share: one draw of so many is made.
    """
    failed = {}

    def fault(case):
        try:
            run(case)
        except Exception as error:
            forget()
            return None if refused(error, case, table) else error
        return None

    @seed(SEED)
    @settings(
        max_examples=max(1, DRAWS // share),
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def test(case):
        warnings.simplefilter("ignore")
        late = failed and time.monotonic() - min(failed.values()) > SHRINKING
        if late and case not in failed:
            return
        if (error := fault(case)) is None:
            return
        what = f"{type(error).__name__}: {error}"
        if FINDINGS:
            with open(FINDINGS, "a") as file:
                file.write(json.dumps({"case": repr(case), "way": case.way, "what": what}) + "\n")
            return
        failed.setdefault(case, time.monotonic())
        raise AssertionError(f"{case!r}\n{what}") from error

    return test
