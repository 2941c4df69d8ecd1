"""The standard library's own sources: text that needs no file and no network."""

from __future__ import annotations

from spectrim.data import python_sources
from spectrim.errors import InputError

FORM = "python or python:held_out"
COMMAND = "spectrim compress MODEL -o OUT --data python"


def matches(spec: str) -> bool:
    return spec == "python" or spec.startswith("python:")


def documents(spec: str, field: str | None) -> list[str]:
    """Return one document per file. Raises InputError for an unknown split and a `field`."""
    split = spec.partition(":")[2] or "train"
    if split not in python_sources.SPLITS:
        known = ", ".join(python_sources.SPLITS)
        raise InputError(f"'{spec}': no split '{split}' of the Python sources; splits: {known}")
    if field is not None:
        raise InputError(f"'{spec}' has no field '{field}'; leave the field out")
    return python_sources.documents(split)
