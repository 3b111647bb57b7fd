"""What training asks of the model: words for each patch, packed questions for the decoder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from transformers import LlavaProcessor

from fopru.evaluation import chat
from fopru.pocket import diagrams, objects, papers, scenes
from fopru.pocket.drawing import COLORS, SIZE, Question, Scene
from making.build import DIGITS
from making.recipe import Recipe

ONES = tuple(f"##{digit}" for digit in DIGITS)
SLOTS: dict[str, tuple[str, ...]] = {
    "name": (
        *("nothing", *objects.SHAPES, *DIGITS, *ONES),
        *(*papers.ITEMS, *diagrams.LETTERS, "bar", "arrow", "point"),
    ),
    "color": tuple(COLORS),
    "row": ("top", "center", "bottom"),
    "column": ("left", "center", "right"),
    "tens": DIGITS,
    "ones": ONES,
    "to": (*papers.ITEMS, *diagrams.LETTERS),
}
"""The words that a patch may be given, tokens of the vocabulary. "tens" and "ones" spell the number
that belongs to what is there (on its sign, in its row, of its bar); "to" is where it leads: an
arrow or a box to a letter, a price to its item."""

IGNORE = -100


def patch_labels(scene: Scene, patch: int, slots: Sequence[str] = tuple(SLOTS)) -> np.ndarray:
    """For each slot and patch the place of its word in `SLOTS`: (slots, patches) int64.

    A patch takes the mark that covers most of it, where any covers a fifth; between nothing and a
    fifth it is ignored. Where nothing is, the name is "nothing" and the other slots are ignored.
    """
    marks = scene.marks
    drawn = Image.new("L", (SIZE, SIZE))
    draw = ImageDraw.Draw(drawn)
    for i, mark in enumerate(marks, start=1):
        mark.paint(draw, i)
    side = SIZE // patch
    cut = np.asarray(drawn).reshape(side, patch, side, patch).transpose(0, 2, 1, 3)
    cut = cut.reshape(side * side, patch * patch)  # (patches, pixels): 0 or the mark's number
    counts = np.stack([(cut == i).sum(1) for i in range(1, 1 + len(marks))], axis=1)
    best, cover = counts.argmax(1), counts.max(1)
    labels = np.full((len(slots), side * side), IGNORE)
    for slot, name in enumerate(slots):
        words = SLOTS[name]
        of_mark = np.array(
            [words.index(m.words[name]) if name in m.words else IGNORE for m in marks]
        )
        labels[slot] = np.where(cover * 5 >= patch * patch, of_mark[best], IGNORE)
        if name == "name":
            labels[slot, cover == 0] = 0
    return labels


class Batch(NamedTuple):
    """One step's worth of scenes. B scenes, S slots, P patches, T text tokens."""

    pixels: Tensor  # (B, 3, S, S) float32
    patches: Tensor  # (B, slots, P)
    words: Tensor  # (B, names + pairs) float32: which are in the picture
    text: Tensor  # (B, T) token ids after the image
    segments: Tensor  # (B, T) which question a token belongs to, 0 for padding
    offsets: Tensor  # (B, T) position within the question
    labels: Tensor  # (B, T) the token itself where it belongs to an answer, else -100

    def to(self, device: torch.device) -> Batch:
        """Return the batch on another device."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


class Batches(torch.utils.data.Dataset):
    """step -> Batch, from the seed and the step alone, so any step can be made again."""

    def __init__(self, processor: LlavaProcessor, recipe: Recipe):
        self.processor, self.recipe = processor, recipe
        self.stages = [stage for stage, _ in recipe.schedule]

    def __len__(self) -> int:
        return len(self.stages)

    @cached_property
    def prompt_ids(self) -> tuple[list[int], list[int]]:
        """Token ids before the image, the placeholder excluded, and before the answer."""
        text = self.processor.apply_chat_template(chat("?"), add_generation_prompt=True)
        ids = self.processor.tokenizer(text).input_ids
        image = ids.index(self.processor.image_token_id)
        return ids[:image], ids[image + 2 :]

    def __getitem__(self, step: int) -> Batch:
        rows = [self._row(step, i) for i in range(self.stages[step].batch)]
        return Batch(*(torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)))

    def _row(self, step: int, i: int) -> tuple[np.ndarray, ...]:
        stage, seed = self.stages[step], (scenes.TRAINING, self.recipe.seed, step, i)
        rng = np.random.default_rng((*seed, 1))
        crowded = stage.learns == "tower"
        few, world = rng.random() < stage.few, self.recipe.world
        scene = scenes.scene(seed, few=few, crowded=crowded, world=world)
        images = self.processor.image_processor
        pixels = np.asarray(scene.image, np.float32) / 255
        pixels = (pixels - np.float32(images.image_mean)) / np.float32(images.image_std)
        asked, room = [], self.recipe.text_tokens
        if stage.learns == "captions":
            room = self.recipe.caption_tokens
        elif stage.learns == "answers":
            found = scenes.questions(scene, rng)
            asked += [q for q in found if q.variant not in scenes.UNTRAINED]
        if stage.learns == "captions" or (stage.learns == "answers" and self.recipe.captions):
            asked.append(Question("caption", "caption", scenes.CAPTION, scene.caption))
        return (
            pixels.transpose(2, 0, 1),
            patch_labels(scene, self.processor.patch_size, self.recipe.slots),
            _present(scene),
            *self._text(asked, room, rng),
        )

    def _text(self, questions: list[Question], room: int, rng) -> tuple[np.ndarray, ...]:
        """Pack questions, in random order, until the next one does not fit into `room` tokens."""
        tokenizer, (_, ask) = self.processor.tokenizer, self.prompt_ids
        text, segments, offsets = (np.zeros(room, np.int64) for _ in range(3))
        labels = np.full(room, IGNORE, np.int64)
        if not questions:
            return text, segments, offsets, labels
        start = 0
        order = [questions[i] for i in rng.permutation(len(questions))]
        asked = tokenizer([q.text for q in order], add_special_tokens=False).input_ids
        answers = tokenizer([q.answer for q in order], add_special_tokens=False).input_ids
        for segment, (question, answer) in enumerate(zip(asked, answers, strict=True), start=1):
            ids = [*question, *ask, *answer, tokenizer.eos_token_id]
            end = start + len(ids)
            if end > room:
                break
            text[start:end], segments[start:end] = ids, segment
            offsets[start:end] = range(len(ids))
            labels[end - len(answer) - 1 : end] = ids[-len(answer) - 1 :]
            start = end
        return text, segments, offsets, labels


def _present(scene: Scene) -> np.ndarray:
    """Which names there are in a picture, and which pairs of colour and shape: 0 or 1."""
    names = {mark.words["name"] for mark in scene.marks}
    pairs = {(mark.words.get("color"), mark.words["name"]) for mark in scene.marks}
    there = [name in names for name in SLOTS["name"]] + [pair in pairs for pair in objects.PAIRS]
    return np.array(there, np.float32)


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
    places = torch.arange(prefix + length, device=every.device)
    causal = places[:, None] >= places
    same = every[:, :, None] == every[:, None, :]  # (B, L, L)
    positions = torch.cat([places[:prefix].expand(batch, -1), prefix + offsets], 1)
    return ((same | (places < prefix)) & causal)[:, None], positions
