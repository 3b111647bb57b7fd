"""Sentences with which a case may be refused, and why each is right to."""

import re
from collections.abc import Callable
from typing import NamedTuple

import zoo
from cases import INSIDE, MERGING, Case


class Refusal(NamedTuple):
    sentence: str
    """A regular expression that is found in the error's message."""
    reason: str
    when: Callable[[Case], bool]
    """The cases that may be refused so: a sentence elsewhere is untrue."""


def _qwen(case: Case) -> bool:
    return case.family.startswith("qwen")


REFUSALS = [
    Refusal(
        r"positions='reindex'.*time, height",
        "M-RoPE ids have three rows and cannot be numbered anew.",
        lambda c: _qwen(c) and c.positions == "reindex",
    ),
    Refusal(
        r"no CLS token|newline token|several patches|first layers|undefined here",
        "The method has no meaning on the family.",
        lambda c: zoo.undefined(c.method, c.family) is not None,
    ),
    Refusal(
        r"k=\d+: a picture of \d+ visual tokens in \d+ view\(s\) keeps \d+ to \d+ of them",
        "Each view keeps a token, and no more than there are.",
        lambda c: c.k is not None,
    ),
    Refusal(
        r"k=\d+: strategy='row' keeps whole rows, and \d+ tokens are no multiple of",
        "Rows are kept whole.",
        lambda c: c.k is not None and c.method == "fopru-row",
    ),
    Refusal(
        r"drops tokens inside the language model: use `with pruner\(model\):`",
        "There are no shorter inputs: tokens leave later.",
        lambda c: c.method in INSIDE and c.way.startswith("inputs_"),
    ),
    Refusal(
        r"weights='mass': shorter inputs cannot carry weights",
        "Nothing in a model's inputs weighs keys.",
        lambda c: c.weights == "mass" and c.way.startswith("inputs_"),
    ),
    Refusal(
        r"positions='preserve' with use_cache=False",
        "Without its cache, generate drops the mask, and gaps become borders.",
        lambda c: c.way == "no_cache",
    ),
    Refusal(
        r"(assistant_model=\w+|prompt_lookup_num_tokens=\d+|prefill_chunk_size=\d+|use_cache=False)"
        r": method '\w+' drops tokens between layers",
        "What is kept hangs on the prompt's last token, and layers' caches differ in length.",
        lambda c: (
            c.method in INSIDE
            and c.way in ("assisted", "self_assisted", "lookup", "chunks", "no_cache")
        ),
    ),
    Refusal(
        r"StaticCache has the same length in all layers, and method '\w+' drops tokens between them",
        "Layers' caches differ in length.",
        lambda c: c.method in INSIDE and "static_cache" in c.way,
    ),
    Refusal(
        r"gradient checkpointing runs layers a second time, and method '\w+' chooses tokens",
        "The second time, the choice would be made from other layers' inputs.",
        lambda c: c.method in INSIDE and c.way == "training",
    ),
    Refusal(
        r"a sequence of \d+ tokens is longer than the window of \d+ that \w+ sees: method '\w+'",
        "A window counts tokens of its layer's own cache.",
        lambda c: c.method in INSIDE and c.window is not None,
    ),
    Refusal(
        r"labels were given, and method '\w+' shortens the sequence inside",
        "The logits are fewer than the labels.",
        lambda c: c.way == "training" and c.method in INSIDE,
    ),
]


def refused(error: Exception, case: Case) -> Refusal | None:
    """The entry that allows this error for this case."""
    for refusal in REFUSALS:
        if refusal.when(case) and re.search(refusal.sentence, str(error)):
            return refusal
    return None
