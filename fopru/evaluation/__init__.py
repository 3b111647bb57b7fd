"""Accuracy against retention."""

from fopru.evaluation.asking import answer, chat, prepare
from fopru.evaluation.runner import evaluate
from fopru.evaluation.served import evaluate_server
from fopru.evaluation.tasks import Example, read_jsonl, read_rows

__all__ = [
    "Example",
    "answer",
    "chat",
    "evaluate",
    "evaluate_server",
    "prepare",
    "read_jsonl",
    "read_rows",
]
