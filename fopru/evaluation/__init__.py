"""Accuracy against retention."""

from fopru.evaluation.runner import answer, chat, evaluate
from fopru.evaluation.tasks import Example

__all__ = ["Example", "answer", "chat", "evaluate"]
