"""Answers of a model to the prompts of a task, and the share of them that is right."""
