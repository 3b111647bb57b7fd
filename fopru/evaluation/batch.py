"""Some questions, answered under many settings: the rows of the table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, ProcessorMixin

from fopru.applying import cache_name
from fopru.evaluation.asking import answer_ids, generate, prompts
from fopru.evaluation.prompting import Prompted, Prompts
from fopru.evaluation.readings import Choices, Known, described, judged, margins
from fopru.evaluation.settings import Setting
from fopru.evaluation.tasks import Example
from fopru.families import UnsupportedModelError
from fopru.methods import Random


class Batch:
    """Some questions, which are answered under one setting after the other."""

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        examples: Sequence[Example],
        settings: Sequence[Setting],
    ):
        self.model, self.processor, self.examples = model, processor, examples
        text = prompts(processor, examples)
        self.answers, self.answer_mask = self._answers(text)
        self.choices = [Choices(processor, t, e) for t, e in zip(text, examples, strict=True)]
        follow = self.answers.shape[1]
        self.prompts = Prompts(model, processor, examples, text, settings, follow)

    @property
    def ended(self) -> bool:
        """Whether the tokenizer has a token that ends an answer."""
        return bool(self.processor.tokenizer.eos_token)

    def _answers(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the token ids of the right answers with their ends, and where these are no
        padding: (B, A) each."""
        ids = [
            torch.tensor(answer_ids(self.processor, text, e.answer)[0], device=self.model.device)
            for text, e in zip(prompts, self.examples, strict=True)
        ]
        lengths = torch.tensor([len(answer) for answer in ids], device=self.model.device)
        answers = pad_sequence(ids, batch_first=True, padding_value=int(ids[0][0]))
        places = torch.arange(answers.shape[1], device=answers.device)
        return answers, places < lengths[:, None]

    def refused(self, setting: Setting) -> dict[str, str]:
        """The questions on pictures of which a number of tokens cannot be kept: id -> why not."""
        found: dict[str, str] = {}
        for image in self.prompts.images if setting.budget is not None else ():
            try:
                setting.pruner.budgets(image.grid)
            except UnsupportedModelError:
                raise
            except ValueError as error:
                found[self.examples[image.sample].id] = str(error)
        return found

    def rows(self, setting: Setting, max_new_tokens: int) -> Iterator[dict[str, Any]]:
        """Yield a row of the table for each question."""
        with self.prompts.read(setting) as prompted:
            margin = self._margins(prompted)
            log = self._read_out(prompted)
            said = self._generated(prompted, max_new_tokens)
        each = log.gather(2, self.answers[..., None])[..., 0].where(self.answer_mask, 0)  # (B, A)
        ends = each.gather(1, self.answer_mask.sum(1, keepdim=True) - 1)[:, 0] if self.ended else 0
        loglik, open_ = each.sum(1).tolist(), (each.sum(1) - ends).tolist()
        away = [None] * len(self.examples) if setting.blind else self._divergence(log)
        for i, (e, evidence) in enumerate(zip(self.examples, self.prompts.evidence, strict=True)):
            kept, retention = prompted.kept[i], setting.retention
            if not setting.pruner.budgeted:
                retention = len(kept) / len(evidence)
            elif setting.budget is not None:
                pictures = sum(image.sample == i for image in self.prompts.images)
                retention = setting.budget * pictures / len(evidence)
            yield {
                **described(e),
                **setting.row(self.prompts.family),
                **judged(e, said[i]),
                "retention": retention,
                "kept": len(kept),
                "layer_weighted": prompted.layer_weighted[i],
                "tokens": len(evidence),
                "evidence": int(evidence.sum()),
                "found": (evidence[kept].sum() / evidence.sum()).item(),  # 0 / 0: NaN
                "choice": None if margin[i] is None else margin[i] >= 0,
                "margin": margin[i],
                "loglik": loglik[i],
                "loglik_open": open_[i],
                "kl": away[i],
                "error": None,
            }

    def _margins(self, prompted: Prompted) -> list[float | None]:
        """Return by how much the right answer of each question leads all other legal ones, in nats,
        or None where the question names no legal answers. The KV cache is left as it was."""
        arguments = {"attention_mask": prompted.mask, "position_ids": prompted.positions}
        known = Known(self.choices, prompted.last.float().log_softmax(-1))
        return margins(self.model, known, prompted.cache, arguments, len(self.examples))

    def _read_out(self, prompted: Prompted) -> Tensor:
        """Read the right answers out to the model, and return the log-probabilities of their
        tokens, (B, A, V)."""
        length, answer_mask = self.answers.shape[1], self.answer_mask
        logits = prompted.last[:, None]
        if length > 1:
            steps = torch.arange(1, length, device=answer_mask.device)
            out = self.model(
                input_ids=self.answers[:, :-1],
                attention_mask=torch.cat([prompted.mask, answer_mask[:, :-1].to(prompted.mask)], 1),
                position_ids=prompted.positions[..., -1:] + steps,
                **{cache_name(self.model): prompted.cache},
                use_cache=True,
            )
            logits = torch.cat([logits, out.logits], 1)
            if self.prompts.roomy:
                prompted.cache.crop(1 - length)
        return logits.float().log_softmax(-1)

    def _generated(self, prompted: Prompted, max_new_tokens: int) -> list[str]:
        """Return what the model answers, stripped and lower-cased."""
        arguments = prompted.arguments
        if self.prompts.roomy:
            prompted.cache.crop(-1)  # generate() wants a token to begin with
            arguments = {
                "input_ids": prompted.ids,
                "attention_mask": prompted.mask,
                "position_ids": prompted.positions,
                cache_name(self.model): prompted.cache,
            }
        return list(generate(self.model, self.processor, arguments, max_new_tokens))

    @cached_property
    def _full(self) -> Tensor:
        """(B, A, V) log-probabilities of the right answers' tokens, with all visual tokens."""
        with self.prompts.read(Setting("full", Random(1.0), 1.0)) as prompted:
            return self._read_out(prompted)

    def _divergence(self, log: Tensor) -> list[float]:
        """Return the Kullback-Leibler divergence from the full model on each right answer, in nats
        per token."""
        each = (self._full.exp() * (self._full - log)).sum(-1)  # (B, A)
        return (each.where(self.answer_mask, 0).sum(1) / self.answer_mask.sum(1)).tolist()
