"""What of a caller's sees token ids while `generate` runs on a shorter prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer


class WholePrompts:
    """Puts whole prompts in front: token ids (R, P + n) of shorter prompts become (R, L + n)."""

    def __init__(self, prompt: Tensor, short: int):
        self.prompt, self.short = prompt, short

    def __call__(self, ids: Tensor) -> Tensor:
        prompts = self.prompt.to(ids.device)
        prompts = prompts.repeat_interleave(len(ids) // len(prompts), dim=0)  # beams
        return torch.cat([prompts, ids[:, self.short :]], dim=1)

    def callables(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the caller's functions of token ids, wrapped so that they get whole prompts."""
        found: dict[str, Any] = {}
        if criteria := kwargs.get("stopping_criteria"):
            criteria = criteria if isinstance(criteria, list) else [criteria]
            found["stopping_criteria"] = StoppingCriteriaList(_Stopping(c, self) for c in criteria)
        if processors := kwargs.get("logits_processor"):
            processors = processors if isinstance(processors, list) else [processors]
            found["logits_processor"] = LogitsProcessorList(_Logits(p, self) for p in processors)
        if (allowed := kwargs.get("prefix_allowed_tokens_fn")) is not None:
            found["prefix_allowed_tokens_fn"] = lambda row, ids: allowed(
                row, torch.cat([self.prompt[row].to(ids.device), ids[self.short :]])
            )
        if (streamer := kwargs.get("streamer")) is not None:
            found["streamer"] = _Streamer(streamer, self)
        return found


class _Stopping(StoppingCriteria):
    def __init__(self, inner: StoppingCriteria, whole: WholePrompts):
        self.inner, self.whole = inner, whole

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        return self.inner(self.whole(input_ids), scores, **kwargs)


class _Logits(LogitsProcessor):
    def __init__(self, inner: LogitsProcessor, whole: WholePrompts):
        self.inner, self.whole = inner, whole

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self.inner(self.whole(input_ids), scores)


class _Streamer(BaseStreamer):
    """Shows a streamer the whole prompt in place of the shorter one, which comes first."""

    def __init__(self, inner: BaseStreamer, whole: WholePrompts):
        self.inner, self.whole = inner, whole
        self.started = False

    def put(self, value: Tensor) -> None:
        if not self.started:
            value, self.started = self.whole(value.view(-1, self.whole.short)), True
        self.inner.put(value)

    def end(self) -> None:
        self.inner.end()
