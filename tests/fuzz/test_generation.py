"""Drawn ways of asking a pruned model, each against a masked run of the unpruned one."""

import cases
from drawing import drawn, refused
from refusals import GENERATION
from scene import Scene, Wrong
from ways import WAYS


def asked(case):
    """Ask the case's way; what transformers itself gets wrong unpruned is no fault."""
    try:
        WAYS[case.way].run(Scene(case))
    except Exception as error:
        if refused(error, case, GENERATION):
            return
        cases.forget()
        try:
            WAYS[case.way].run(Scene(case, pruned=False))
        except Exception as theirs:
            if isinstance(theirs, Wrong) or type(theirs) is type(error):
                return
        raise


test_generation = drawn(lambda draws: cases.drawn_case(draws, WAYS), asked, cases.forget)
