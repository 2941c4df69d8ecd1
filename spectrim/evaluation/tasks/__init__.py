"""Answers of a model to the prompts of a task, and their accuracy."""
