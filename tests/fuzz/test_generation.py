"""Drawn ways of asking a pruned model, each against a masked run of the unpruned one.

FOPRU_FUZZ_DRAWS (20) and FOPRU_FUZZ_SEED (0) say how many and which. FOPRU_FUZZ_FINDINGS names a file: then
every draw is made, and all that is wrong goes there, one line of JSON each.
"""

import json
import logging
import os
import time
import warnings

import cases
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from refusals import refused
from scene import Scene, Wrong
from ways import WAYS

DRAWS = int(os.environ.get("FOPRU_FUZZ_DRAWS", "20"))
SEED = int(os.environ.get("FOPRU_FUZZ_SEED", "0"))
FINDINGS = os.environ.get("FOPRU_FUZZ_FINDINGS")
SHRINKING = 20
"""Seconds for making a failing case smaller."""

counts = {"right": 0, "refused": 0, "transformers": 0, "wrong": 0}
failing = {}
"""When the first failure was, and the cases that failed."""


def fault(case):
    """What is wrong with a case; None where the answer is right or the refusal listed."""
    try:
        WAYS[case.way].run(Scene(case))
    except Exception as error:
        if refused(error, case):
            counts["refused"] += 1
            return None
        cases.forget()
        try:  # is it transformers' own?
            WAYS[case.way].run(Scene(case, pruned=False))
        except Exception as theirs:
            if isinstance(theirs, Wrong) or type(theirs) is type(error):
                counts["transformers"] += 1
                return None
        cases.forget()
        counts["wrong"] += 1
        return error
    counts["right"] += 1
    return None


@seed(SEED)
@settings(
    max_examples=DRAWS,
    deadline=None,
    database=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
@given(cases.cases(WAYS))
def test_generation(case):
    warnings.simplefilter("ignore")
    late = failing and time.monotonic() - failing["first"] > SHRINKING
    if late and case not in failing["cases"]:
        return
    if (error := fault(case)) is None:
        return
    if FINDINGS:
        with open(FINDINGS, "a") as file:
            what = f"{type(error).__name__}: {error}"
            file.write(json.dumps({"case": repr(case), "way": case.way, "what": what}) + "\n")
        return
    failing.setdefault("first", time.monotonic())
    failing.setdefault("cases", set()).add(case)
    raise AssertionError(f"{case!r}\n{type(error).__name__}: {error}") from error
