"""Accuracy against retention."""

from fopru.evaluation.tasks import Example

__all__ = ["Example"]
