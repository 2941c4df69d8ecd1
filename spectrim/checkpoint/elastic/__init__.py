"""Checkpoints that hold every size of a model, cut to one when they are loaded."""
