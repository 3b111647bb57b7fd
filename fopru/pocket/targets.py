"""What training asks of the model: dense labels for the tower, packed questions for the decoder."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from transformers import LlavaProcessor

from fopru.evaluation import chat
from fopru.pocket import TRAINING, scenes

KINDS = len(scenes.SHAPES) + 10
"""What a patch can show: nothing (0), a shape (1 to 6), a digit (7 to 16)."""

IGNORE = -100


def patch_labels(scene: scenes.Scene, patch: int) -> tuple[np.ndarray, np.ndarray]:
    """Kind and colour of what lies under each patch: two (patches,) int64 arrays.

    A patch takes the kind that covers most of it, where anything covers a fifth; between nothing
    and a fifth it is ignored. Colours are -100 where there is no shape.
    """
    kinds = Image.new("L", (scenes.SIZE, scenes.SIZE))
    draw = ImageDraw.Draw(kinds)
    for i, thing in enumerate(scene.things):
        scenes.paint(thing, draw, 1 + i)
    for i, (x0, y0, x1, y1) in enumerate(scene.sign.glyphs):
        draw.rectangle((x0, y0, x1 - 1, y1 - 1), fill=1 + len(scene.things) + i)
    labels = [scenes.SHAPES.index(t.shape) + 1 for t in scene.things]
    labels += [len(scenes.SHAPES) + 1 + int(digit) for digit in scene.sign.text]
    colors = [list(scenes.COLORS).index(t.color) for t in scene.things] + [IGNORE, IGNORE]

    side = scenes.SIZE // patch
    cut = np.asarray(kinds).reshape(side, patch, side, patch).transpose(0, 2, 1, 3)
    cut = cut.reshape(side * side, patch * patch)  # (patches, pixels): 0 or the thing's number
    counts = np.stack([(cut == i).sum(1) for i in range(1 + len(labels))], axis=1)
    best = counts[:, 1:].argmax(1)
    cover = counts[:, 1:].max(1)
    kind = np.where(cover * 5 >= patch * patch, np.array(labels)[best], IGNORE)
    kind[cover == 0] = 0
    return kind, np.where(kind > 0, np.array(colors)[best], IGNORE)


class Batch(NamedTuple):
    """One step's worth of scenes. B scenes, P patches, T text tokens."""

    pixels: Tensor  # (B, 3, S, S) float32
    kinds: Tensor  # (B, P)
    colors: Tensor  # (B, P)
    pairs: Tensor  # (B, colours * shapes) float32: which are there
    digits: Tensor  # (B, 2)
    text: Tensor  # (B, T) token ids after the image
    segments: Tensor  # (B, T) which question a token belongs to, 0 for padding
    offsets: Tensor  # (B, T) position within the question
    labels: Tensor  # (B, T) the token itself where it belongs to an answer, else -100


class Batches(torch.utils.data.Dataset):
    """step -> Batch, from the seed and the step alone, so any step can be made again."""

    def __init__(
        self,
        processor: LlavaProcessor,
        seed: int,
        sizes: list[int],
        text_tokens: int,
        objects: list[tuple[int, int]],
    ):
        self.processor, self.seed, self.sizes = processor, seed, sizes
        self.text_tokens, self.objects = text_tokens, objects

    def __len__(self) -> int:
        return len(self.sizes)

    @cached_property
    def prompt_ids(self) -> tuple[list[int], list[int]]:
        """Token ids before the image, the placeholder excluded, and before the answer."""
        text = self.processor.apply_chat_template(chat("?"), add_generation_prompt=True)
        ids = self.processor.tokenizer(text).input_ids
        image = ids.index(self.processor.image_token_id)
        return ids[:image], ids[image + 2 :]

    def __getitem__(self, step: int) -> Batch:
        rows = [self._row(step, i) for i in range(self.sizes[step])]
        return Batch(*(torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)))

    def _row(self, step: int, i: int) -> tuple[np.ndarray, ...]:
        scene = scenes.scene((TRAINING, self.seed, step, i), self.objects[step])
        rng = np.random.default_rng((TRAINING, self.seed, step, i, 1))
        images = self.processor.image_processor
        pixels = np.asarray(scene.image, np.float32) / 255
        pixels = (pixels - np.float32(images.image_mean)) / np.float32(images.image_std)
        kinds, colors = patch_labels(scene, self.processor.patch_size)
        pairs = np.zeros((len(scenes.COLORS), len(scenes.SHAPES)), np.float32)
        for thing in scene.things:
            pairs[list(scenes.COLORS).index(thing.color), scenes.SHAPES.index(thing.shape)] = 1
        digits = np.array([int(digit) for digit in scene.sign.text])
        return (
            pixels.transpose(2, 0, 1),
            kinds,
            colors,
            pairs.ravel(),
            digits,
            *self._text(scenes.questions(scene, rng), rng),
        )

    def _text(self, questions: list[scenes.Question], rng) -> tuple[np.ndarray, ...]:
        """Pack questions, in random order, until the next one does not fit."""
        tokenizer, (_, ask) = self.processor.tokenizer, self.prompt_ids
        text, segments, offsets = (np.zeros(self.text_tokens, np.int64) for _ in range(3))
        labels = np.full(self.text_tokens, IGNORE, np.int64)
        start = 0
        order = [questions[i] for i in rng.permutation(len(questions))]
        asked = tokenizer([q.text for q in order], add_special_tokens=False).input_ids
        answers = tokenizer([q.answer for q in order], add_special_tokens=False).input_ids
        for segment, (question, answer) in enumerate(zip(asked, answers, strict=True), start=1):
            ids = [*question, *ask, *answer, tokenizer.eos_token_id]
            end = start + len(ids)
            if end > self.text_tokens:
                break
            text[start:end], segments[start:end] = ids, segment
            offsets[start:end] = range(len(ids))
            labels[end - len(answer) - 1 : end] = ids[-len(answer) - 1 :]
            start = end
        return text, segments, offsets, labels


def isolated(prefix: int, segments: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Attention mask and positions under which each question sees the image and itself only.

    Args:
        prefix: tokens up to and with the image.
        segments, offsets: (B, T) as in `Batch`.

    Returns:
        mask (B, 1, L, L) bool with L = prefix + T, and position ids (B, L).
    """
    batch, length = segments.shape
    every = torch.cat([segments.new_zeros(batch, prefix), segments], 1)  # (B, L)
    causal = torch.ones(prefix + length, prefix + length, dtype=torch.bool).tril()
    same = every[:, :, None] == every[:, None, :]  # (B, L, L)
    to_prefix = (torch.arange(prefix + length) < prefix)[None, None, :]
    positions = torch.cat([torch.arange(prefix).expand(batch, -1), prefix + offsets], 1)
    return ((same | to_prefix) & causal)[:, None], positions
