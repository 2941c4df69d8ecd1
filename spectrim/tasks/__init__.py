"""Tasks: prompts with answers, read from files or generated, and how well a model does."""

from spectrim.tasks.example import TaskExample

__all__ = ["TaskExample"]
