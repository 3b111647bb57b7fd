"""What an engine keeps, read from its workers: for `fopru serve-check` and the tests.

vLLM runs these inside its workers by `LLM.apply_model`, which sends functions to other processes if
VLLM_ALLOW_INSECURE_SERIALIZATION is set: set it for a check, never for a server.
"""

from __future__ import annotations

from typing import Any


def watch(model: Any) -> None:
    """Let a pruned model note what it keeps of each picture from here on."""
    model.log = []
    kept = model.kept

    def noting(*args: Any) -> Any:
        places = kept(*args)
        model.log += [there.tolist() for there in places]
        return places

    model.kept = noting


def take(model: Any) -> list[list[int]]:
    """Return the places that each picture kept since the last call, and forget them."""
    log, model.log = model.log, []
    return log
