"""Questions through a model's own chat template, and what it says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from transformers import AddedToken, BatchFeature, PreTrainedModel, ProcessorMixin

from fopru.evaluation.tasks import Example
from fopru.videos import Video

PADDED = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
"""How processors are called."""


def chat(question: str, shown: Sequence[str] = ("image",)) -> list[dict[str, Any]]:
    """Return a question about what is shown as a conversation that chat templates take.

    Args:
        shown: "image" or "video" for each that stands before the question.
    """
    content = [*({"type": kind} for kind in shown), {"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def prepare(
    processor: ProcessorMixin, images: Image | Sequence[Image], question: str = ""
) -> BatchFeature:
    """Return the inputs of one question about one or more pictures, in the processor's own chat
    template, as `model.generate(**inputs)` and `fopru.encode(model, inputs)` take them.

    Args:
        processor: The model's processor.
        images: A picture, or several that stand before the question.
        question: What is asked; may be left out where only the pictures matter.

    Raises:
        ValueError: The question holds a token that stands for a picture, such as "<image>".
    """
    shown = [images] if isinstance(images, Image) else list(images)
    _plain(processor, question, f"question={question!r}")
    text = processor.apply_chat_template(
        chat(question, ["image"] * len(shown)), add_generation_prompt=True
    )
    return _processed(processor, [shown], [text])


def _processed(
    processor: ProcessorMixin, images: list[list[Image]], text: list[str]
) -> BatchFeature:
    """Return the processor's output for prompts with their pictures, padded on the left."""
    made = processor(images=images, text=text, **PADDED)
    made.pop("labels", None)  # PaliGemma's, for training
    return made


@torch.no_grad()
def answer(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    examples: Sequence[Example],
    batch_size: int = 32,
    max_new_tokens: int = 6,
) -> Iterator[str]:
    """Yield what the model says to each question, stripped and lower-cased, in order.

    Each goes through the processor's chat template, as a user would ask it. Inside
    `with pruner(model)` the answers are the pruned ones.
    """
    for kind, alike in groupby(examples, lambda e: e.modality):
        questions, size = list(alike), batch_size if kind == "image" else 1
        for start in range(0, len(questions), size):
            part = questions[start : start + size]
            asked = inputs_of(processor, part).to(model.device)
            yield from generate(model, processor, asked, max_new_tokens)


def prompts(processor: ProcessorMixin, examples: Sequence[Example]) -> list[str]:
    """Write each question in the processor's chat template, up to where the answer begins.

    Raises:
        ValueError: A question holds a token that stands for the picture, such as "<image>": the
            message names the question.
    """
    for e in examples:
        _plain(processor, e.question, f"examples: question {e.id!r}")
    chats = [chat(e.question, [e.modality]) for e in examples]
    return processor.apply_chat_template(chats, add_generation_prompt=True)


def _plain(processor: ProcessorMixin, question: str, name: str) -> None:
    for token in _reserved(processor):
        if token in question:
            raise ValueError(
                f"{name} holds {token!r}, which stands for the picture in this model's prompts: "
                "write it in another way."
            )


def _reserved(processor: ProcessorMixin) -> list[str]:
    """Return the tokens that stand for pictures or frame them, as far as the processor names
    them."""
    found = {
        str(token)
        for name, token in vars(processor).items()
        if name.endswith("_token") and isinstance(token, str | AddedToken)
    }
    return sorted(found - {""}, key=len, reverse=True)


def pictureless(processor: ProcessorMixin, prompt: str) -> str:
    """Return a prompt without what stands for the picture in it."""
    for token in _reserved(processor):
        prompt = prompt.replace(token, "")
    return prompt


def inputs_of(
    processor: ProcessorMixin, examples: Sequence[Example], text: Sequence[str] | None = None
) -> BatchFeature:
    """Return the processor's output for questions and their prompts, padded on the left.

    Args:
        examples: All about pictures, or all about videos with as many frames, which are in memory.
        text: Their prompts, or None for `prompts` of them.
    """
    text = prompts(processor, examples) if text is None else list(text)
    if examples[0].modality == "video":
        return processor(**videos([e.image for e in examples]), text=text, **PADDED)
    return _processed(processor, [[e.image] for e in examples], text)


def videos(clips: Sequence[Video]) -> dict[str, Any]:
    """Return what a processor takes for videos in memory: all of their frames."""
    return {
        "videos": [np.stack([np.asarray(frame) for frame in clip.frames]) for clip in clips],
        "do_sample_frames": False,
        "video_metadata": [
            {
                "total_num_frames": len(clip.frames),
                "fps": clip.fps,
                "duration": clip.fps and len(clip.frames) / clip.fps,
                "frames_indices": list(range(len(clip.frames))),
            }
            for clip in clips
        ],
    }


def answer_ids(processor: ProcessorMixin, prompt: str, *texts: str) -> list[list[int]]:
    """Return the token ids of each answer with its end, as they follow the prompt.

    A space parts the answer from a prompt that ends in a word, as after "ASSISTANT:"; none does
    where a template ends its prompt with white space or a special token.

    Args:
        prompt: One of `prompts`.
        texts: The answers.

    Raises:
        ValueError: The tokenizer joins the end of the prompt with an answer, or one has no token
            to measure.
    """
    tokenizer = processor.tokenizer
    parted = prompt[-1:].isspace() or prompt.endswith(tuple(tokenizer.all_special_tokens))
    end = tokenizer.eos_token or ""
    wholes = [f"{prompt}{' ' if text and not parted else ''}{text}{end}" for text in texts]
    before, *found = tokenizer([prompt, *wholes]).input_ids
    for text, ids in zip(texts, found, strict=True):
        if ids[: len(before)] != before:
            raise ValueError(
                f"answer={text!r}: the tokenizer joins its beginning with the end of the prompt "
                f"({prompt[-20:]!r}), so its likelihood is not defined."
            )
        if len(ids) == len(before):
            raise ValueError(
                f"answer={text!r}: has no token, and this tokenizer has no token that ends an "
                "answer."
            )
    return [ids[len(before) :] for ids in found]


def generate(
    model: PreTrainedModel, processor: ProcessorMixin, inputs: Any, max_new_tokens: int
) -> Iterator[str]:
    """Yield the new words of each row, stripped and lower-cased."""
    out = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    new = out[:, inputs["input_ids"].shape[1] :]
    for said in processor.batch_decode(new, skip_special_tokens=True):
        yield said.strip().lower()
