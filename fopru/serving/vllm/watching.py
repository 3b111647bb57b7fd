"""What an engine keeps, read from its workers: for `fopru serve-check` and the tests.

vLLM runs these inside its workers by `LLM.apply_model`, which sends functions to other processes if
VLLM_ALLOW_INSECURE_SERIALIZATION is set: set it for a check, never for a server.
"""

from __future__ import annotations

from typing import Any


def carry_places(worker: Any) -> None:
    """Let a worker ask its model for the places of kept tokens, where the engine was started so:
    vLLM's runner for CPUs forgets to."""
    runner = worker.model_runner
    model = runner.get_model()
    runner.is_multimodal_pruning_enabled = getattr(model, "is_multimodal_pruning_enabled", False)


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
