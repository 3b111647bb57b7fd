"""Asking a model many questions, with all visual tokens and with fewer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from fopru.encoding import Encoded, EncodedImage, encode
from fopru.evaluation.controls import EVIDENCE, Oracle, grey, swapped
from fopru.evaluation.evidence import cover, frame
from fopru.evaluation.tasks import Example
from fopru.in_llm import InLLMPruner
from fopru.methods import Random
from fopru.pruner import METHODS, Pruner, check_choice

BLIND = {"grey": grey, "swapped": swapped}


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
        inputs = _inputs(processor, part, _prompts(processor, part)).to(model.device)
        yield from _generate(model, processor, inputs, max_new_tokens)


def _prompts(processor: ProcessorMixin, examples: Sequence[Example]) -> list[str]:
    chats = [chat(e.question) for e in examples]
    return processor.apply_chat_template(chats, add_generation_prompt=True)


def _inputs(processor: ProcessorMixin, examples: Sequence[Example], text: list[str]) -> Any:
    """The processor's output, padded on the left so that all texts end together."""
    images = [e.image for e in examples]
    return processor(
        images=images, text=text, padding=True, padding_side="left", return_tensors="pt"
    )


def _generate(model, processor, inputs, max_new_tokens: int) -> Iterator[str]:
    out = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    new = out[:, inputs["input_ids"].shape[1] :]
    for said in processor.batch_decode(new, skip_special_tokens=True):
        yield said.strip().lower()


@dataclass(frozen=True)
class _Setting:
    """One cell of the comparison."""

    method: str
    pruner: Pruner
    retention: float
    seed: int = 0


def _settings(
    methods: Iterable[str], retentions: Iterable[float], positions: str | None, seeds: Iterable[int]
) -> list[_Setting]:
    settings = []
    for method in methods:
        cls = Oracle if method == "oracle" else METHODS[method]
        seeded = "seed" in {field.name for field in fields(cls)}
        for retention in retentions:
            for seed in seeds if seeded else (0,):
                arguments = {"seed": seed} if seeded else {}
                pruner = cls(retention, positions=positions, **arguments)
                settings.append(_Setting(method, pruner, retention, seed))
    return settings


@torch.no_grad()
def evaluate(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    examples: Sequence[Example],
    methods: Sequence[str] = ("fopru", "fopru-row", "random"),
    retentions: Sequence[float] = (0.5, 0.25, 0.1),
    positions: str | None = None,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    blind: Sequence[str] = (),
    batch_size: int = 64,
    max_new_tokens: int = 8,
) -> pd.DataFrame:
    """Ask every question with all visual tokens, and with those that each method keeps.

    Pictures go through the vision tower once for the whole comparison; questions on the same
    picture share its selection where they stand next to each other.

    Args:
        examples: as of `fopru.pocket.benchmark` or `fopru.pocket.sample`.
        methods: names from `fopru.METHODS`, or "oracle", which keeps the tokens under the evidence.
        retentions: shares of each picture's visual tokens to keep, in (0, 1].
        positions: as for `fopru.Pruner`.
        seeds: those of methods that have one.
        blind: "grey" or "swapped" ask, with all tokens, about another picture.
        batch_size: questions at a time.
        max_new_tokens: longest answer.

    Returns:
        One row per question and setting: id, task, variant, image, method, retention, seed, kept
        and tokens (visual tokens, kept and in all; inside the language model, those that its last
        layer sees), layer_weighted (mean over its layers of those seen), evidence (patches under
        it), found (share of these among the kept, NaN where there are none), prediction, answer,
        correct, loglik (of the right answer with its end, in nats). "full" is the method with all
        tokens.

    Raises:
        ValueError: an unknown method or control, or a retention outside (0, 1].
    """
    for method in methods:
        check_choice("methods", method, (*METHODS, "oracle"))
    for control in blind:
        check_choice("blind", control, tuple(BLIND))
    settings = _settings(methods, retentions, positions, seeds)
    full = _Setting("full", Random(1.0), 1.0)
    parts = [(examples, [full, *settings])]
    parts += [(BLIND[c](examples), [replace(full, method=c)]) for c in blind]
    total = len(examples) * sum(len(asked) for _, asked in parts)
    rows: list[dict[str, Any]] = []
    with tqdm(total=total, desc="evaluate", unit="answer") as bar:
        for part, asked in parts:
            for start in range(0, len(part), batch_size):
                batch = _Batch(model, processor, part[start : start + batch_size], asked)
                for setting in asked:
                    rows += batch.rows(setting, max_new_tokens)
                    bar.update(len(batch.examples))
    return pd.DataFrame(rows)


class _Batch:
    """Some questions, their pictures encoded once."""

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        examples: Sequence[Example],
        settings: Sequence[_Setting],
    ):
        self.model, self.processor, self.examples = model, processor, examples
        self.prompts = _prompts(processor, examples)
        end = processor.tokenizer.eos_token or ""
        told = [f"{p} {e.answer}{end}" for p, e in zip(self.prompts, examples, strict=True)]
        pictures: dict[int, int] = {}
        for i, e in enumerate(examples):
            pictures.setdefault(id(e.image), i)
        first = list(pictures.values())
        inputs = _inputs(processor, [examples[i] for i in first], [self.prompts[i] for i in first])
        pruners = [setting.pruner for setting in settings]
        encoded = encode(model, inputs.to(model.device), pruners)
        self.family = encoded.family
        seen = dict(zip(pictures, encoded.images, strict=True))
        self.images: list[EncodedImage] = []
        for row, e in enumerate(examples):
            image = seen[id(e.image)]
            evidence = cover(image.grid, frame(e.image, processor), e.evidence)
            scores = {**image.scores, EVIDENCE: evidence.to(image.features)}
            self.images.append(replace(image, sample=row, scores=scores))
        everyone = list(range(len(examples)))
        self.told = self._text(everyone, told)
        ends = self.told["attention_mask"].sum(1) - self._text(everyone)["attention_mask"].sum(1)
        self.lengths = ends.tolist()
        """Tokens of each right answer, its end included."""

    def _text(self, rows: list[int], text: list[str] | None = None) -> dict[str, Tensor]:
        """The processor's output for these rows, without the pictures."""
        text = [self.prompts[i] for i in rows] if text is None else text
        inputs = _inputs(self.processor, [self.examples[i] for i in rows], text)
        kept = {n: v for n, v in inputs.items() if n not in self.family.pixels}
        return {name: value.to(self.model.device) for name, value in kept.items()}

    def rows(self, setting: _Setting, max_new_tokens: int) -> Iterator[dict[str, Any]]:
        inside = isinstance(setting.pruner, InLLMPruner)
        pruner = Random(1.0) if inside else setting.pruner
        with setting.pruner(self.model) if inside else nullcontext() as run:
            pruned = pruner.compact(Encoded(self.family, self.told, tuple(self.images)))
            logliks, certain = self._told(pruned)
            kept = [image.kept for image in pruned.images]
            weighted = [float(len(tokens)) for tokens in kept]
            if run is not None:
                kept, weighted = run.kept, run.layer_weighted
            said = [e.answer for e in self.examples]
            if open_ := [i for i, sure in enumerate(certain) if not sure]:
                images = tuple(replace(self.images[i], sample=row) for row, i in enumerate(open_))
                asked = pruner.compact(Encoded(self.family, self._text(open_), images))
                answers = _generate(self.model, self.processor, asked, max_new_tokens)
                for i, words in zip(open_, answers, strict=True):
                    said[i] = words
        for i, (e, image) in enumerate(zip(self.examples, self.images, strict=True)):
            evidence = (image.scores[EVIDENCE] > 0.2).cpu()
            yield {
                "id": e.id,
                "task": e.task,
                "variant": e.scene.get("variant", ""),
                "image": e.scene.get("image_id", e.id),
                "method": setting.method,
                "retention": setting.retention,
                "seed": setting.seed,
                "kept": len(kept[i]),
                "layer_weighted": weighted[i],
                "tokens": len(evidence),
                "evidence": int(evidence.sum()),
                "found": (evidence[kept[i]].sum() / evidence.sum()).item(),  # 0 / 0: NaN
                "prediction": said[i],
                "answer": e.answer,
                "correct": said[i] == e.answer,
                "loglik": logliks[i],
            }

    def _told(self, pruned: Any) -> tuple[list[float], list[bool]]:
        """Log-likelihood of the right answers, and whether greedy decoding would write them: where
        each of their tokens is the model's first choice, there is no need to generate."""
        longest = max(self.lengths) + 1
        logits = self.model(**pruned, logits_to_keep=longest).logits  # (B, longest, V)
        ids = pruned["input_ids"]
        logliks, certain = [], []
        for row, length in enumerate(self.lengths):
            wanted = ids[row, -length:]
            log = logits[row, -length - 1 : -1].float().log_softmax(-1)
            logliks.append(log.gather(1, wanted[:, None]).sum().item())
            certain.append(bool((log.argmax(-1) == wanted).all()))
        return logliks, certain
