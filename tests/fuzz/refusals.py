"""Sentences with which a case may be refused, and why each is right to."""

from collections.abc import Callable
from typing import Any

import zoo
from cases import INSIDE, Case
from drawing import Refusal


def _spatial(case: Case) -> bool:
    return case.family in zoo.SPATIAL


GENERATION = [
    Refusal(
        r"positions='reindex'.*time, height",
        "M-RoPE ids have three rows and cannot be numbered anew.",
        lambda c: _spatial(c) and c.positions == "reindex",
    ),
    Refusal(
        r"newline token|several patches|first layers|undefined here",
        "The method has no meaning on the family.",
        lambda c: zoo.undefined(c.method, c.family) is not None,
    ),
    Refusal(
        r"tokens=\d+: a picture of \d+ visual tokens in \d+ view\(s\) keeps \d+ to \d+ of them",
        "Each view keeps a token, and no more than there are.",
        lambda c: c.budget is not None,
    ),
    Refusal(
        r"tokens=\d+: strategy='row' keeps whole rows, and \d+ tokens are no multiple of",
        "Rows are kept whole.",
        lambda c: c.budget is not None and c.method == "fopru-row",
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
        r"static cache \(\w+\) has the same length in all layers, and method '\w+' drops",
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
        r"attention_mask is missing, and input_ids hold padding",
        "Outside of generate nothing says which token is padding.",
        lambda c: not c.mask and len(c.rows) > 1 and c.way.startswith("inputs_"),
    ),
    Refusal(
        r"the KV cache holds the first \d+ tokens of the prompt, and method '\w+' reads prompts",
        "What is kept hangs on attention over the whole prompt.",
        lambda c: c.method in INSIDE and c.way == "cached_beginning",
    ),
    Refusal(
        r"pictures were given with inputs_embeds or without input_ids",
        "Their places are found in the ids.",
        lambda c: c.way == "embedded",
    ),
    Refusal(
        r"labels were given, and method '\w+' shortens the sequence inside",
        "The logits are fewer than the labels.",
        lambda c: c.way == "training" and c.method in INSIDE,
    ),
]


def _some(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Whether a question of the run is such; a case of `test_results` comes with its run."""
    return lambda drawn: any(test(q) for q in drawn[1].questions)


def _beside(*names: str) -> Callable[[Any], bool]:
    return lambda drawn: drawn[0].beside in names


RESULTS = [
    Refusal(
        r"undefined here",
        "The method has no meaning on the family.",
        lambda d: any(zoo.undefined(name, d[0].family) for name in d[1].methods),
    ),
    Refusal(
        r"positions='reindex'.*time, height",
        "M-RoPE ids have three rows and cannot be numbered anew.",
        lambda d: _spatial(d[0]) and d[1].positions == "reindex",
    ),
    Refusal(
        r"holds no questions|rows: there are none|examples=\[\]: there is no question",
        "Nothing was asked.",
        lambda d: not d[1].questions,
    ),
    Refusal(
        r"questions\.jsonl: is no UTF-8 text",
        "JSON Lines are UTF-8.",
        lambda d: d[1].encoding == "utf-16" and d[1].door != "rows",
    ),
    Refusal(
        r"(line|row) \d+: (field 'answers?' is (missing|not)|the right answer is an empty text)",
        "There is nothing to compare with.",
        _some(lambda q: q.answer >= 7),
    ),
    Refusal(
        r"(line|row) \d+: field 'id' is '.*', as that of a question before",
        "Rows are known by their id.",
        _some(lambda q: q.name is not None),
    ),
    Refusal(
        r"there is no folder .*nowhere",
        "Folders are not made.",
        _beside("no folder"),
    ),
    Refusal(
        r"out\.(parquet|json|sqlite).* (holds other things|is not of fopru|of something else)",
        "What is the user's own is not overwritten.",
        _beside("json", "sqlite", "parquet", "times"),
    ),
    Refusal(
        r"weights='mass': \w+ drops tokens inside the language model",
        "Inside the language model no token stands for others.",
        lambda d: d[1].weights == "mass" and "fastv" in d[1].methods,
    ),
    Refusal(
        r"question '.*' holds '.*', which stands for the picture",
        "A question cannot hold the picture's placeholder.",
        _some(lambda q: q.text == 8),
    ),
]
ASK = [
    Refusal(
        r"\.png: (no such file|cannot be read as a picture)",
        "There is no picture.",
        lambda c: c.picture in ("missing", "broken"),
    ),
    Refusal(r"retention=2\.0: must be a number in \(0, 1\]", "", lambda c: c.retention == 2),
    Refusal(r"question='': ask something", "There is no question.", lambda c: c.question == 7),
    Refusal(
        r"question='.*': <image> stands for the picture; leave it out",
        "A question cannot hold the picture's placeholder.",
        lambda c: c.question == 8,
    ),
]
