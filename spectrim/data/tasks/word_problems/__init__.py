"""Arithmetic word problems in two to four steps, generated: the same on every machine."""

from spectrim.data.tasks.word_problems.problems import word_problems
from spectrim.data.tasks.word_problems.splits import SPLITS

__all__ = ["SPLITS", "word_problems"]
