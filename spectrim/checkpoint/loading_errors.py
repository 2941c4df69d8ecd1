"""Turn every exception of a loader into one line: what is wrong, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from spectrim.errors import CheckpointError, InputError, ModelError, SpectrimError

_UNFIT = (KeyError, AttributeError, TypeError, IndexError, ArithmeticError, AssertionError)
"""Exceptions that libraries raise without a message, for values that they do not expect."""
_LONGEST = 300


@contextmanager
def explain(source: Path | str) -> Iterator[None]:
    """Raise InputError or CheckpointError for whatever loading `source` raises inside.

    Too little memory is passed on: it says nothing about the checkpoint.
    """
    try:
        yield
    except (SpectrimError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise _translate(error, source) from error


def reason(error: BaseException) -> str:
    """Return the first sentence of an error on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."


def _translate(error: Exception, source: Path | str) -> SpectrimError:
    text = reason(error)
    if isinstance(error, ImportError):
        return CheckpointError(f"{source} needs a package that cannot be imported: {text}")
    if isinstance(error, OSError):
        if isinstance(source, Path):
            return CheckpointError(f"{source}: {text}")
        return InputError(
            f"{source} is neither a directory here nor a model that the Hub gives: {text}"
        )
    if "trust_remote_code" in str(error):
        return CheckpointError(
            f"{source} comes with its own code, which is not run unasked; if you trust it, "
            "give --trust-remote-code (in Python trust_remote_code=True)"
        )
    if "Unrecognized configuration class" in text:
        return ModelError(
            f"{source} is no causal language model of transformers; of one that also reads "
            "images or sound, save the language model alone "
            "(AutoModel.from_pretrained(NAME).language_model) and give that, or compress any "
            "part in Python by spectrim.compress_any(model, batches, loss)"
        )
    if isinstance(error, _UNFIT):
        return CheckpointError(
            f"{source} cannot be loaded: config.json or another of its files has a value that "
            f"transformers does not expect ({type(error).__name__}: {text})"
        )
    return CheckpointError(f"{source} cannot be loaded: {text}")
