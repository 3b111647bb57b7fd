"""What a model says and what it knows: two readings of one question.

A model that answers "84 lamp 48" where 84 is right did not stop, but knows. What is generated shows
what is said. What is known shows in a forced choice: which of the legal answers is the likeliest,
each read out to the model, its end not scored.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel, ProcessorMixin

from fopru.applying import cache_name, select_rows
from fopru.evaluation.asking import answer_ids
from fopru.evaluation.tasks import Example

Tokens = tuple[int, ...]


def begins(said: str, right: Sequence[str]) -> bool:
    """Return whether what was said begins with a right answer that ends where a word ends."""
    return any(said.startswith(r) and not said[len(r) :][:1].isalnum() for r in right)


def legal_answers(e: Example) -> tuple[str, ...] | None:
    """Return the answers that a question may have, stripped and in lower case, or None where it
    names none.

    Raises:
        ValueError: The choices are empty, repeat one another, or lack every right answer.
    """
    if e.choices is None:
        return None
    found = tuple(choice.strip().lower() for choice in e.choices)
    if not found:
        raise ValueError(f"examples: question {e.id!r} has choices=(): name some, or leave it out.")
    if twice := sorted(choice for choice, times in Counter(found).items() if times > 1):
        raise ValueError(f"examples: question {e.id!r} names the choice {twice[0]!r} twice.")
    if not set(found) & set(e.right):
        raise ValueError(
            f"examples: question {e.id!r} has the answer {e.answer!r}, which is none of its "
            f"choices: {', '.join(found)}."
        )
    return found


def described(e: Example) -> dict[str, Any]:
    """Return what a row of results says of its question."""
    return {
        "id": e.id,
        "task": e.task,
        "variant": e.scene.get("variant", ""),
        "image": e.scene.get("image_id", e.id),
        "answer": e.right[0],
        "metric": e.metric,
    }


def judged(e: Example, said: str) -> dict[str, Any]:
    """Return what a row of results says of a generated answer, stripped and in lower case."""
    legal = legal_answers(e)
    return {
        "prediction": said,
        "exact": said in e.right,
        "begins": begins(said, e.right),
        "formed": None if legal is None else said in legal,
        "score": e.score(said),
    }


class Choices:
    """The legal answers of one question, as tokens that follow its prompt.

    An answer that others begin with ("center", "center left") is scored with its end, and so are
    those that begin with it; all others are scored without.
    """

    def __init__(self, processor: ProcessorMixin, prompt: str, e: Example):
        names = [choice.strip() for choice in e.choices] if legal_answers(e) else []
        found = map(tuple, answer_ids(processor, prompt, *names))
        whole: dict[str, Tokens] = dict(zip(names, found, strict=True))
        end = 1 if processor.tokenizer.eos_token else 0
        short = {name: ids[: len(ids) - end] for name, ids in whole.items()}
        ends: dict[Tokens, list[str]] = {}
        for name, ids in short.items():
            ends.setdefault(ids, []).append(name)
        clash = {
            name
            for other, ids in short.items()
            for length in range(len(ids) + 1)
            for one in ends.get(ids[:length], ())
            if one != other
            for name in (one, other)
        }
        self.tokens: dict[Tokens, bool] = {
            (whole if name in clash else short)[name]: name.lower() in e.right for name in names
        }
        """The tokens of each legal answer -> whether it is right."""
        following: dict[Tokens, set[int]] = {}
        for ids in self.tokens:
            for i, token in enumerate(ids):
                following.setdefault(ids[:i], set()).add(token)
        self.following = {beginning: sorted(some) for beginning, some in following.items()}
        """Each beginning of a legal answer -> the tokens that may follow it."""


class Known:
    """What the model thinks of each question's legal answers, found by reading as few as needed.

    The probability of an answer is at most that of its beginning. So beginnings are read out to the
    model only while one of them could still lead to a likelier wrong answer than any that is known.
    """

    def __init__(self, choices: Sequence[Choices], last: Tensor):
        """Begin with the (B, V) log-probabilities of what follows the prompts."""
        self.choices = choices
        self.after: list[dict[Tokens, dict[int, float]]] = [{} for _ in choices]
        """For each question: a beginning -> the log-probabilities of what may follow it."""
        for row, log in enumerate(last):
            self.learn(row, (), log)

    def learn(self, row: int, beginning: Tokens, log: Tensor) -> None:
        """Take of (V,) log-probabilities those of the tokens that may follow this beginning: a
        vocabulary has a hundred thousand."""
        some = self.choices[row].following.get(beginning)
        if some and beginning not in self.after[row]:
            self.after[row][beginning] = dict(zip(some, log[some].tolist(), strict=True))

    def bound(self, row: int, tokens: Tokens) -> tuple[float, Tokens | None]:
        """Return the log-probability of the longest known beginning of an answer, and the beginning
        that has to be read next, or None where all of it is known."""
        total = 0.0
        for i, token in enumerate(tokens):
            if (log := self.after[row].get(tokens[:i])) is None:
                return total, tokens[:i]
            total += log[token]
        return total, None

    def margin(self, row: int) -> tuple[float | None, set[Tokens]]:
        """Return how much likelier the likeliest right answer is than the likeliest wrong one, in
        nats, and the beginnings to read next: the likeliest one while no right or no wrong answer
        is known whole, then all that could still change the margin."""
        if len(self.choices[row].tokens) < 2:
            return None, set()
        best: dict[bool, float] = {True: -torch.inf, False: -torch.inf}
        open_: dict[bool, list[tuple[float, Tokens]]] = {True: [], False: []}
        for tokens, right in self.choices[row].tokens.items():
            total, unread = self.bound(row, tokens)
            if unread is None:
                best[right] = max(best[right], total)
            else:
                open_[right].append((total, unread))
        needed: set[Tokens] = set()
        for right, some in open_.items():
            if some and best[right] == -torch.inf:
                some = [max(some)]
            needed |= {unread for total, unread in some if total > best[right]}
        return best[True] - best[False], needed


def margins(
    model: PreTrainedModel,
    known: Known,
    cache: Cache,
    arguments: Mapping[str, Tensor],
    size: int,
) -> list[float | None]:
    """Return by how much the likeliest right answer of each question leads all wrong ones, in nats,
    or None where the question names no legal answers.

    Args:
        model: The model, within the block of the session that read the prompts.
        known: What is known already; it learns what is read here.
        cache: The KV cache of the B prompts; it is left as it was.
        arguments: "attention_mask", (B, L), and "position_ids", (..., B, L), of the prompts.
        size: How many beginnings are read at a time.
    """
    found = [known.margin(row) for row in range(len(known.choices))]
    while unread := [(row, tokens) for row, (_, needed) in enumerate(found) for tokens in needed]:
        for start in range(0, len(unread), size):
            _read(model, known, cache, arguments, unread[start : start + size])
        for row in {row for row, _ in unread}:
            found[row] = known.margin(row)
    return [value for value, _ in found]


def _read(
    model: PreTrainedModel,
    known: Known,
    cache: Cache,
    arguments: Mapping[str, Tensor],
    some: Sequence[tuple[int, Tokens]],
) -> None:
    """Read beginnings of answers out to the model, each on a copy of its prompt's cache."""
    mask, positions = arguments["attention_mask"], arguments["position_ids"]
    index = torch.tensor([row for row, _ in some], device=mask.device)
    longest = max(len(tokens) for _, tokens in some)
    ids = torch.tensor(
        [[*tokens, *tokens[-1:] * (longest - len(tokens))] for _, tokens in some],
        device=mask.device,
    )  # (R, T); what follows a shorter one is not looked at
    copied = copy.deepcopy(cache)
    select_rows(copied, index)
    steps = torch.arange(1, longest + 1, device=mask.device)
    called: dict[str, Any] = {
        "input_ids": ids,
        "attention_mask": torch.cat([mask[index], torch.ones_like(ids).to(mask)], 1),
        "position_ids": positions[..., index, -1:] + steps,
        cache_name(model): copied,
    }
    log = model(**called, use_cache=True).logits.float().log_softmax(-1)  # (R, T, V)
    for (row, tokens), values in zip(some, log, strict=True):
        for i in range(len(tokens)):
            known.learn(row, tokens[: i + 1], values[i])
