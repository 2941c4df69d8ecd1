"""Defaults that Python and the command line share."""

EVALUATION_TOKENS = 20_000
"""Tokens of a text that an evaluation uses, unless it says otherwise."""
