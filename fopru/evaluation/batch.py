"""Some questions, answered under many settings, with their pictures encoded once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache, PreTrainedModel, ProcessorMixin

from fopru.applying import Session, cache_name, select_rows
from fopru.encoding import Encoded, EncodedImage, encode
from fopru.evaluation.asking import generate, inputs, prompts, shareable
from fopru.evaluation.controls import EVIDENCE, PIXELS, shuffled
from fopru.evaluation.evidence import cover, frame
from fopru.evaluation.tasks import Example
from fopru.families import Family
from fopru.in_llm import InLLMPruner
from fopru.methods import Random
from fopru.pruner import Pruner


@dataclass(frozen=True)
class Setting:
    """One cell of the comparison."""

    method: str
    """As the table names it."""
    pruner: Pruner
    retention: float
    seed: int = 0
    blind: bool = False
    """Whether the true picture is not shown."""
    later: bool = False
    """Whether the next question on the same picture decides what is kept."""
    shuffled: bool = False
    """Whether the kept tokens lose their order."""

    def key(self, e: Example, family: Family) -> tuple[Any, ...]:
        """As in `fopru.evaluation.store.KEY`."""
        return e.id, self.method, self.retention, self.pruner.numbering(family), self.seed


@dataclass
class Prompted:
    """Prompts that went through the language model, padded on the left: B rows of L tokens."""

    cache: Cache
    ids: Tensor  # (B, L)
    mask: Tensor  # (B, L)
    positions: Tensor  # (B, L)
    last: Tensor  # (B, V) logits of what follows
    kept: list[Tensor]
    """Per row the visual tokens that are kept."""
    layer_weighted: list[float]
    """Per row the mean over layers of the visual tokens seen."""


class Told(NamedTuple):
    """What the model thinks of the right answers, each with its end: A tokens at most."""

    log: Tensor  # (B, A, V) log-probabilities
    loglik: list[float]
    certain: list[bool]
    """Whether each of their tokens is the first choice: then there is no need to generate."""


class Batch:
    """Some questions and their pictures, encoded once."""

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        examples: Sequence[Example],
        settings: Sequence[Setting],
    ):
        self.model, self.processor, self.examples = model, processor, examples
        pictures: dict[int, int] = {}
        numbers = [pictures.setdefault(id(e.image), len(pictures)) for e in examples]
        self.picture = torch.tensor(numbers, device=model.device)  # (B,) of each question
        self.first = [numbers.index(i) for i in range(len(pictures))]
        self.text = prompts(processor, examples)
        asked = shareable(model, inputs(processor, examples, self.text))
        encoded = encode(model, self._shown(asked), [setting.pruner for setting in settings])
        self.family = encoded.family
        self.asked = {n: v for n, v in asked.items() if n not in self.family.pixels}
        pixels = asked["pixel_values"][self.first]
        self.pictures = tuple(
            replace(image, scores={**image.scores, PIXELS: values})
            for image, values in zip(encoded.images, pixels, strict=True)
        )
        self.images = tuple(self._of(row, e) for row, e in enumerate(examples))
        self.evidence = [(image.scores[EVIDENCE] > 0.2).cpu() for image in self.images]
        self.answers, self.there = self._answers()

    def _shown(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The first question on each picture."""
        return {name: value[self.first] for name, value in asked.items()}

    def _of(self, row: int, e: Example) -> EncodedImage:
        """The picture of a question, with what is evidence to it."""
        image = self.pictures[int(self.picture[row])]
        evidence = cover(image.grid, frame(e.image, self.processor), e.evidence)
        scores = {**image.scores, EVIDENCE: evidence.to(image.features)}
        return replace(image, sample=row, scores=scores)

    def _answers(self) -> tuple[Tensor, Tensor]:
        """Token ids of the right answers with their ends, (B, A), and which are no padding."""
        tokenizer = self.processor.tokenizer
        end = tokenizer.eos_token or ""
        told = [f"{p} {e.answer}{end}" for p, e in zip(self.text, self.examples, strict=True)]
        ids = []
        for whole, prompt in zip(
            tokenizer(told).input_ids, tokenizer(self.text).input_ids, strict=True
        ):
            ids.append(torch.tensor(whole[len(prompt) :], device=self.model.device))
        lengths = torch.tensor([len(answer) for answer in ids], device=self.model.device)
        answers = pad_sequence(ids, batch_first=True, padding_value=int(ids[0][0]))
        places = torch.arange(answers.shape[1], device=answers.device)
        return answers, places < lengths[:, None]

    def rows(self, setting: Setting, max_new_tokens: int) -> Iterator[dict[str, Any]]:
        """A row of the table for each question."""
        with self._prompted(setting) as prompted:
            told = self._told(prompted)
            said = self._said(prompted, told, setting, max_new_tokens)
        away = [None] * len(self.examples) if setting.blind else self._divergence(told)
        for i, (e, evidence) in enumerate(zip(self.examples, self.evidence, strict=True)):
            kept = prompted.kept[i]
            yield {
                "id": e.id,
                "task": e.task,
                "variant": e.scene.get("variant", ""),
                "image": e.scene.get("image_id", e.id),
                "method": setting.method,
                "retention": setting.retention,
                "positions": setting.pruner.numbering(self.family),
                "seed": setting.seed,
                "kept": len(kept),
                "layer_weighted": prompted.layer_weighted[i],
                "tokens": len(evidence),
                "evidence": int(evidence.sum()),
                "found": (evidence[kept].sum() / evidence.sum()).item(),  # 0 / 0: NaN
                "prediction": said[i],
                "answer": e.answer,
                "correct": said[i] in (e.answer, *e.also),
                "metric": e.metric,
                "score": e.score(said[i]),
                "loglik": told.loglik[i],
                "kl": away[i],
                "error": None,
            }

    @contextmanager
    def _prompted(self, setting: Setting) -> Iterator[Prompted]:
        pruner = setting.pruner
        if setting.method == "none":
            yield self._without_picture()
        elif pruner.weights != "none":
            with pruner(self.model) as session:
                yield self._weighted(setting, session)
        elif isinstance(pruner, InLLMPruner):
            everything = Random(1.0).compact
            chosen = None
            if setting.later:
                other = {name: value[self._next] for name, value in self.asked.items()}
                with pruner(self.model) as chosen:
                    self._read(everything(Encoded(self.family, other, self.images)))
            with pruner(self.model, chosen) as run:
                prompted = self._read(everything(Encoded(self.family, self.asked, self.images)))
                yield replace(prompted, kept=run.kept, layer_weighted=run.layer_weighted)
        elif pruner.asks or self.prefix is None:
            asked, images = Encoded(self.family, self.asked, self.images), self.images
            if setting.later:
                others = enumerate(self._next)
                images = tuple(replace(images[i], text=asked.text(j)) for i, j in others)
            yield self._read(self._compact(setting, replace(asked, images=images)))
        else:
            pruned = self._compact(setting, Encoded(self.family, self.prefix, self.pictures))
            yield self._on(self._read(pruned), setting)

    def _weighted(self, setting: Setting, session: Session) -> Prompted:
        """Kept tokens with the weight of those they stand for."""
        apart = setting.pruner.asks or self.prefix is None
        asked, images = (self.asked, self.images) if apart else (self.prefix, self.pictures)
        prompted = self._read(session.arguments(Encoded(self.family, asked, images)))
        return prompted if apart else self._on(prompted, setting)

    def _compact(self, setting: Setting, encoded: Encoded) -> Mapping[str, Any]:
        pruned = setting.pruner.shortened(encoded, *setting.pruner.choose(encoded))
        return shuffled(pruned, setting.seed) if setting.shuffled else pruned

    @cached_property
    def _next(self) -> list[int]:
        """For each question the next one on its picture, after the last the first."""
        pictures, rows = self.picture.tolist(), []
        for row, picture in enumerate(pictures):
            same = [i for i, other in enumerate(pictures) if other == picture]
            rows.append(same[(same.index(row) + 1) % len(same)])
        return rows

    @cached_property
    def _tails(self) -> Tensor:
        """(B,) tokens that follow the picture in each prompt."""
        return (self.asked["input_ids"] == self.family.image_token_id).flip(1).long().argmax(1)

    @cached_property
    def prefix(self) -> dict[str, Tensor] | None:
        """What the prompts on each picture begin with, up to its last token, where that is the same
        for all of them and some picture has several; else None."""
        ids, mask = self.asked["input_ids"], self.asked["attention_mask"].bool()
        ends = ids.shape[1] - self._tails
        whole = [r[m][:e] for r, m, e in zip(ids, mask, ends - (~mask).sum(1), strict=True)]
        heads = [whole[row] for row in self.first]
        shared = len(heads) < len(whole) and all(
            torch.equal(head, heads[picture])
            for head, picture in zip(whole, self.picture.tolist(), strict=True)
        )
        if not shared:
            return None
        left = {"batch_first": True, "padding_side": "left"}
        masks = pad_sequence([torch.ones_like(head) for head in heads], **left)
        return {
            "input_ids": pad_sequence(heads, padding_value=int(ids[0, -1]), **left),
            "attention_mask": masks,
        }

    def _read(self, pruned: Mapping[str, Any]) -> Prompted:
        """Prefill."""
        mask = pruned["attention_mask"]
        positions = pruned.get("position_ids")
        if positions is None:
            positions = (mask.bool().cumsum(1) - 1).clamp(min=0)
        out = self.model(**{**pruned, "position_ids": positions}, use_cache=True, logits_to_keep=1)
        kept = [image.kept for image in getattr(pruned, "images", ())]
        weighted = [float(len(tokens)) for tokens in kept]
        cache = out.past_key_values
        return Prompted(
            cache, pruned["input_ids"], mask, positions, out.logits[:, -1], kept, weighted
        )

    def _on(self, before: Prompted, setting: Setting) -> Prompted:
        """Every question on its picture's prefix, which went through the model once."""
        of = self.picture
        select_rows(before.cache, of)
        longest = int(self._tails.max())
        ids = self.asked["input_ids"][:, -longest:]  # (B, T)
        mask = torch.arange(longest, device=of.device) >= longest - self._tails[:, None]
        ids = ids.where(mask, ids[:, -1:])
        preserved = setting.pruner.numbering(self.family) == "preserve"
        start = (self.prefix["attention_mask"] if preserved else before.mask).bool().sum(1)[of]
        positions = start[:, None] + (mask.cumsum(1) - 1).clamp(min=0)
        mask = torch.cat([before.mask[of], mask.to(before.mask)], 1)
        out = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            **{cache_name(self.model): before.cache},
            use_cache=True,
            logits_to_keep=1,
        )
        return Prompted(
            before.cache,
            torch.cat([before.ids[of], ids], 1),
            mask,
            torch.cat([before.positions[of], positions], 1),
            out.logits[:, -1],
            [before.kept[i] for i in of.tolist()],
            [before.layer_weighted[i] for i in of.tolist()],
        )

    def _without_picture(self) -> Prompted:
        text = [prompt.replace(self.processor.image_token, "") for prompt in self.text]
        asked = self.processor(text=text, padding=True, padding_side="left", return_tensors="pt")
        none = [torch.zeros(0, dtype=torch.int64)] * len(text)
        return replace(
            self._read(asked.to(self.model.device)), kept=none, layer_weighted=[0.0] * len(text)
        )

    def _told(self, prompted: Prompted) -> Told:
        """Read the right answers out to the model; the cache is left as it was."""
        length, there = self.answers.shape[1], self.there
        logits = prompted.last[:, None]
        if length > 1:
            out = self.model(
                input_ids=self.answers[:, :-1],
                attention_mask=torch.cat([prompted.mask, there[:, :-1].to(prompted.mask)], 1),
                position_ids=prompted.positions[:, -1:]
                + torch.arange(1, length, device=there.device),
                **{cache_name(self.model): prompted.cache},
                use_cache=True,
            )
            logits = torch.cat([logits, out.logits], 1)
            prompted.cache.crop(1 - length)
        log = logits.float().log_softmax(-1)  # (B, A, V)
        loglik = log.gather(2, self.answers[..., None])[..., 0].where(there, 0).sum(1)
        certain = ((log.argmax(-1) == self.answers) | ~there).all(1)
        return Told(log, loglik.tolist(), certain.tolist())

    def _said(self, prompted: Prompted, told: Told, setting: Setting, n: int) -> list[str]:
        """What the model answers, stripped and lower-cased."""
        said = [e.answer for e in self.examples]
        rows = [i for i, sure in enumerate(told.certain) if not sure]
        if not rows:
            return said
        if isinstance(setting.pruner, InLLMPruner):  # its hooks know the rows of the whole batch
            rows = list(range(len(said)))
        else:
            index = torch.tensor(rows, device=self.model.device)
            select_rows(prompted.cache, index)
        prompted.cache.crop(-1)  # generate() wants a token to begin with
        asked = {
            "input_ids": prompted.ids[rows],
            "attention_mask": prompted.mask[rows],
            "position_ids": prompted.positions[rows],
            cache_name(self.model): prompted.cache,
        }
        answers = generate(self.model, self.processor, asked, n)
        for row, words in zip(rows, answers, strict=True):
            said[row] = words
        return said

    @cached_property
    def _full(self) -> Tensor:
        """(B, A, V) log-probabilities of the right answers' tokens, with all visual tokens."""
        with self._prompted(Setting("full", Random(1.0), 1.0)) as prompted:
            return self._told(prompted).log

    def _divergence(self, told: Told) -> list[float]:
        """Kullback-Leibler divergence from the full model on each right answer: nats per token."""
        each = (self._full.exp() * (self._full - told.log)).sum(-1)  # (B, A)
        return (each.where(self.there, 0).sum(1) / self.there.sum(1)).tolist()
