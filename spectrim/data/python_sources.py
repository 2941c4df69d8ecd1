"""The Python sources of the running interpreter: text that is on every machine.

One document per `.py` file of the standard library. A file belongs to the held-out
split when a hash of its path relative to the library falls in one sixteenth of the
range, so the split is the same on every machine and for every Python version.
"""

from __future__ import annotations

import hashlib
import sysconfig
from pathlib import Path

SPLITS = ("train", "held_out")
LARGEST_FILE = 200_000
"""Bytes; larger files are tables (encodings, Unicode data), not prose or code."""
_HELD_OUT_ONE_IN = 16


def is_held_out(relative_path: str) -> bool:
    digest = hashlib.sha256(relative_path.encode()).digest()
    return digest[0] % _HELD_OUT_ONE_IN == 0


def source_files(split: str, root: Path | None = None) -> list[Path]:
    root = root or Path(sysconfig.get_paths()["stdlib"])
    files = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if {"site-packages", "dist-packages"} & set(relative.parts):
            continue
        if is_held_out(relative.as_posix()) == (split == "held_out"):
            files.append(path)
    return files


def documents(split: str, root: Path | None = None) -> list[str]:
    texts = []
    for path in source_files(split, root):
        if path.stat().st_size > LARGEST_FILE:
            continue
        try:
            text = path.read_text(encoding="utf-8").strip()
        except UnicodeDecodeError:  # the test suite ships sources in other encodings
            continue
        if text:
            texts.append(text)
    return texts
