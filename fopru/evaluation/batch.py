"""Some questions, answered under many settings, with their pictures encoded once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from fopru.encoding import Encoded, EncodedImage, encode
from fopru.evaluation.asking import generate, inputs, prompts
from fopru.evaluation.controls import EVIDENCE
from fopru.evaluation.evidence import cover, frame
from fopru.evaluation.tasks import Example
from fopru.in_llm import InLLMPruner
from fopru.methods import Random
from fopru.pruner import Pruner


@dataclass(frozen=True)
class Setting:
    """One cell of the comparison."""

    method: str
    pruner: Pruner
    retention: float
    seed: int = 0

    def key(self, e: Example, positions: str) -> tuple[Any, ...]:
        """As in `fopru.evaluation.store.KEY`."""
        return e.id, self.method, self.retention, self.pruner.positions or positions, self.seed


class Batch:
    """Some questions, their pictures encoded once."""

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        examples: Sequence[Example],
        settings: Sequence[Setting],
    ):
        self.model, self.processor, self.examples = model, processor, examples
        self.prompts = prompts(processor, examples)
        end = processor.tokenizer.eos_token or ""
        told = [f"{p} {e.answer}{end}" for p, e in zip(self.prompts, examples, strict=True)]
        pictures: dict[int, int] = {}
        for i, e in enumerate(examples):
            pictures.setdefault(id(e.image), i)
        first = list(pictures.values())
        shown = inputs(processor, [examples[i] for i in first], [self.prompts[i] for i in first])
        pruners = [setting.pruner for setting in settings]
        encoded = encode(model, shown.to(model.device), pruners)
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
        asked = inputs(self.processor, [self.examples[i] for i in rows], text)
        kept = {n: v for n, v in asked.items() if n not in self.family.pixels}
        return {name: value.to(self.model.device) for name, value in kept.items()}

    def rows(self, setting: Setting, max_new_tokens: int) -> Iterator[dict[str, Any]]:
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
                answers = generate(self.model, self.processor, asked, max_new_tokens)
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
                "positions": setting.pruner.positions or self.family.positions,
                "seed": setting.seed,
                "kept": len(kept[i]),
                "layer_weighted": weighted[i],
                "tokens": len(evidence),
                "evidence": int(evidence.sum()),
                "found": (evidence[kept[i]].sum() / evidence.sum()).item(),  # 0 / 0: NaN
                "prediction": said[i],
                "answer": e.answer,
                "correct": said[i] in (e.answer, *e.also),
                "score": e.score(said[i]),
                "loglik": logliks[i],
                "error": None,
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
