"""Accuracy against retention."""

from fopru.evaluation.runner import answer, chat
from fopru.evaluation.tasks import Example

__all__ = ["Example", "answer", "chat"]
