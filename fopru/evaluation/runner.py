"""Asking a model many questions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, ProcessorMixin

from fopru.evaluation.tasks import Example


def chat(question: str) -> list[dict[str, Any]]:
    """A question about one picture, as chat templates take it."""
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]


@torch.no_grad()
def answer(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    examples: Sequence[Example],
    batch_size: int = 32,
    max_new_tokens: int = 6,
) -> Iterator[str]:
    """What the model says to each lone question, stripped and lower-cased, in order.

    Each goes through the processor's chat template, as a user would ask it. Inside
    `with pruner(model)` the answers are the pruned ones.
    """
    for start in range(0, len(examples), batch_size):
        part = examples[start : start + batch_size]
        chats = [chat(e.question) for e in part]
        text = processor.apply_chat_template(chats, add_generation_prompt=True)
        inputs = processor(
            images=[e.image for e in part], text=text, padding=True, return_tensors="pt"
        ).to(model.device)
        out = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        new = out[:, inputs["input_ids"].shape[1] :]
        for said in processor.batch_decode(new, skip_special_tokens=True):
            yield said.strip().lower()
