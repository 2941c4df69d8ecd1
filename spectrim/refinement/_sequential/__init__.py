"""Rewrite layers one after another on the inputs of the rewritten prefix."""
