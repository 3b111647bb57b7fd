"""Some questions and their pictures or videos, before the language model under many settings: each
picture encoded once, and what several prompts begin with read once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache, PreTrainedModel, ProcessorMixin

from fopru.applying import Session, cache_name, cache_of, select_rows
from fopru.applying.layers import attends, window
from fopru.encoding import Encoded, EncodedImage, encode
from fopru.evaluation.asking import inputs_of, pictureless
from fopru.evaluation.controls import EVIDENCE, PIXELS, shuffled
from fopru.evaluation.evidence import cover, frames
from fopru.evaluation.settings import Setting
from fopru.evaluation.tasks import Example
from fopru.families import Family
from fopru.pruned import PER_TOKEN, numbered
from fopru.pruner import Pruner


@dataclass
class Prompted:
    """Prompts that went through the language model, padded on the left: B rows of L tokens."""

    arguments: Mapping[str, Any]
    """The arguments that the model was called with, where it was called once."""
    cache: Cache
    ids: Tensor  # (B, L)
    mask: Tensor  # (B, L)
    positions: Tensor  # (B, L), or (4, B, L) with M-RoPE
    last: Tensor  # (B, V) logits of what follows
    kept: list[Tensor]
    """The visual tokens that are kept of each row, as indices among the row's own."""
    layer_weighted: list[float]
    """The mean over layers of the visual tokens that each layer sees, one number per row."""


class Prompts:
    """The prompts of some questions, which are read under one setting after the other.

    Args:
        text: The prompt of each question, as `fopru.evaluation.asking.prompts` makes it.
        settings: All that `read` will be asked for.
        follow: How many tokens will follow a prompt at most.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        examples: Sequence[Example],
        text: Sequence[str],
        settings: Sequence[Setting],
        follow: int,
    ):
        self.model, self.processor, self.text, self.follow = model, processor, text, follow
        pictures: dict[int, int] = {}
        numbers = [pictures.setdefault(id(e.image), len(pictures)) for e in examples]
        self.picture = torch.tensor(numbers, device=model.device)  # (B,) of each question
        self.first = [numbers.index(i) for i in range(len(pictures))]
        whole = inputs_of(processor, examples, text).to(model.device)
        self.family = Family.of(model).reading(whole)
        shown = whole
        if len(self.first) < len(examples):
            first = [examples[row] for row in self.first], [text[row] for row in self.first]
            shown = inputs_of(processor, *first).to(model.device)
        pruners = [setting.pruner for setting in settings]
        alone = [pruner for pruner in pruners if "pixels" in pruner.needs]
        gone = (*self.family.pixels, *self.family.options)
        self.inputs = {name: value for name, value in whole.items() if name not in gone}
        self.also = {name: shown[name] for name in self.family.also if name in shown}
        together = [pruner for pruner in pruners if pruner not in alone]
        self.pictures, self.images = self._encoded(examples, shown, together)
        self.own = {one.label: self._encoded(examples, shown, [one]) for one in alone}
        """What methods that leave patches out before the tower have in place of these two."""
        covered = [(image.learned[EVIDENCE] > 0.2).cpu() for image in self.images]
        self.evidence = [
            torch.cat([c for c, i in zip(covered, self.images, strict=True) if i.sample == row])
            for row in range(len(examples))
        ]

    def _encoded(
        self, examples: Sequence[Example], shown: Mapping[str, Any], pruners: Sequence[Pruner]
    ) -> tuple[tuple[EncodedImage, ...], tuple[EncodedImage, ...]]:
        """Return the pictures, and those of each question, from one pass of the vision tower."""
        encoded = encode(self.model, shown, pruners)
        pictures = _with_pixels(encoded.images, shown[self.family.pixels[0]])
        numbers = self.picture.tolist()
        images = (self._images_of(row, e, pictures, numbers[row]) for row, e in enumerate(examples))
        return pictures, tuple(chain.from_iterable(images))

    def _images_of(
        self, row: int, e: Example, pictures: Sequence[EncodedImage], number: int
    ) -> Iterator[EncodedImage]:
        """Yield the picture of a question, or its tiles, with what is evidence to the question."""
        images = [image for image in pictures if image.sample == number]
        views = sum(len(image.grid.views) for image in images)
        shown = iter(frames(e.image, self.processor, views))
        for image in images:
            evidence = cover(image.grid, list(islice(shown, len(image.grid.views))), e.evidence)
            learned = {**image.learned, EVIDENCE: evidence.to(image.features)}
            yield replace(image, sample=row, learned=learned)

    @contextmanager
    def read(self, setting: Setting) -> Iterator[Prompted]:
        """Read the prompts of all questions, and yield them in a block in which the model goes on
        with them."""
        if setting.method == "none":
            yield self._without_picture()
            return
        pruner, chosen = setting.pruner, ()
        with pruner(self.model) as session:
            if session.shortens or not setting.later:
                yield self._prompts(session, setting)
                return
            others = {name: value[..., self._next, :] for name, value in self._per_token.items()}
            self._prefill(session, {**self.inputs, **others}, self.images)
            chosen = (session,)
        with pruner(self.model, *chosen) as session:
            yield self._prompts(session, setting)

    def _prompts(self, session: Session, setting: Setting) -> Prompted:
        """Read the prompts of all questions, within the session's block."""
        pruner = setting.pruner
        pictures, images = self.own.get(pruner.label, (self.pictures, self.images))
        if session.shortens and not pruner.asks and self.prefix is not None:
            before = self._prefill(session, self.prefix, pictures, setting)
            return self._go_on(before, pruner.numbering(self.family))
        if setting.later:
            encoded = Encoded(self.family, self.inputs, images)
            images = tuple(replace(i, text=encoded.text(self._next[i.sample])) for i in images)
        return self._prefill(session, self.inputs, images, setting)

    def _prefill(
        self,
        session: Session,
        text: Mapping[str, Any],
        images: tuple[EncodedImage, ...],
        setting: Setting | None = None,
    ) -> Prompted:
        """Run prompts with their pictures through the language model once."""
        arguments = session.arguments(Encoded(self.family, text, images))
        if setting is not None and setting.shuffled:
            arguments = shuffled(arguments, setting.seed)
        found = self._forward(arguments)
        return replace(found, kept=session.kept, layer_weighted=session.layer_weighted)

    def _forward(self, arguments: Mapping[str, Any]) -> Prompted:
        ids, mask = arguments["input_ids"], arguments["attention_mask"]
        positions = arguments.get("position_ids")
        if positions is None:
            positions = numbered(mask)
            if self.family.spatial:
                positions = positions.expand(4, -1, -1)
        called = {**arguments, "position_ids": positions}
        out = self.model(**called, use_cache=True, logits_to_keep=1)
        cache = cache_of(out)
        return Prompted(arguments, cache, ids, mask, positions, out.logits[:, -1], [], [])

    def _without_picture(self) -> Prompted:
        text = [pictureless(self.processor, prompt) for prompt in self.text]
        inputs = self.processor(text=text, padding=True, padding_side="left", return_tensors="pt")
        none = [torch.zeros(0, dtype=torch.int64)] * len(text)
        found = self._forward(inputs.to(self.model.device))
        return replace(found, kept=none, layer_weighted=[0.0] * len(text))

    @cached_property
    def _per_token(self) -> dict[str, Tensor]:
        """The inputs with one value per token, (B, L) each."""
        names = [name for name in PER_TOKEN if self.inputs.get(name) is not None]
        return {name: self.inputs[name] for name in names}

    @cached_property
    def _next(self) -> list[int]:
        """For each question the next one on the same picture; the first one follows the last."""
        pictures, rows = self.picture.tolist(), []
        for row, picture in enumerate(pictures):
            same = [i for i, other in enumerate(pictures) if other == picture]
            rows.append(same[(same.index(row) + 1) % len(same)])
        return rows

    # several questions on one picture

    @cached_property
    def _tails(self) -> Tensor:
        """(B,) int64: the number of tokens that follow the picture in each prompt."""
        return (self.inputs["input_ids"] == self.family.image_token_id).flip(1).long().argmax(1)

    @cached_property
    def prefix(self) -> dict[str, Tensor] | None:
        """What the prompts on each picture begin with, up to its last token: what a language model
        that looks back only makes of it is the same whatever follows. None where no picture has
        several questions, their beginnings differ, the sequences fill a window, or the model looks
        ahead within a prompt."""
        if not self.family.looks_back:
            return None
        mask = self._per_token["attention_mask"].bool()
        columns = torch.arange(mask.shape[1], device=mask.device)
        kept = mask & (columns < mask.shape[1] - self._tails[:, None])  # (B, L)
        heads = {
            name: [row[keep] for row, keep in zip(values, kept, strict=True)]
            for name, values in self._per_token.items()
        }
        firsts = [self.first[picture] for picture in self.picture.tolist()]
        alike = all(
            torch.equal(head, rows[first])
            for rows in heads.values()
            for head, first in zip(rows, firsts, strict=True)
        )
        if len(self.first) == len(firsts) or not alike or not self.roomy:
            return None
        fill = {**PER_TOKEN, "input_ids": int(self.inputs["input_ids"][0, -1])}
        padded = {
            name: pad_sequence(
                [rows[row] for row in self.first],
                batch_first=True,
                padding_value=fill[name],
                padding_side="left",
            )
            for name, rows in heads.items()
        }
        return padded | self.also

    @cached_property
    def roomy(self) -> bool:
        """Whether the language model's cache holds all of prompts and what follows them, and can go
        back to where it was: they are shorter than any of its windows, all its layers attend (a
        state of linear attention only goes on, and padding between tokens would fade it), and the
        prompt looks back only (PaliGemma numbers what `generate` takes up in another way)."""
        if not self.family.looks_back:
            return False
        length = self.inputs["input_ids"].shape[1] + self.follow
        layers = self.family.decoder.layers
        return all(attends(layer) and length < (window(layer) or math.inf) for layer in layers)

    def _go_on(self, before: Prompted, numbering: str) -> Prompted:
        """Read what follows each picture's prefix, which went through the model once for all its
        questions."""
        of = self.picture
        select_rows(before.cache, of)
        longest = int(self._tails.max())
        ids = self.inputs["input_ids"][:, -longest:]  # (B, T)
        tail = torch.arange(longest, device=of.device) >= longest - self._tails[:, None]
        ids = ids.where(tail, ids[:, -1:])  # no placeholders
        mask = torch.cat([before.mask[of], tail.to(before.mask)], 1)
        positions = numbered(mask)[:, -longest:]
        if numbering == "preserve":
            kept = self._whole_positions[..., -longest:]  # (B, T), or (3, B, T)
            positions = torch.cat([positions[None], kept]) if self.family.spatial else kept
        out = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            **{cache_name(self.model): before.cache},
            use_cache=True,
            logits_to_keep=1,
        )
        return replace(
            before,
            ids=torch.cat([before.ids[of], ids], 1),
            mask=mask,
            positions=torch.cat([before.positions[..., of, :], positions], -1),
            last=out.logits[:, -1],
            kept=[before.kept[i] for i in of.tolist()],
            layer_weighted=[before.layer_weighted[i] for i in of.tolist()],
        )

    @cached_property
    def _whole_positions(self) -> Tensor:
        """(B, L) position ids of the whole prompts; (3, B, L) with M-RoPE."""
        grids = [image.grid for image in self.images]
        found = self.family.position_ids(self.inputs, self.inputs["attention_mask"], grids)
        return found[-3:] if self.family.spatial else found


def _with_pixels(images: Sequence[EncodedImage], pixels: Tensor) -> tuple[EncodedImage, ...]:
    """Return the pictures with their pixels, where each has its own (3, H, W)."""
    if pixels.dim() != 4 or len(pixels) != len(images):
        return tuple(images)
    return tuple(
        replace(image, learned={**image.learned, PIXELS: values})
        for image, values in zip(images, pixels, strict=True)
    )
