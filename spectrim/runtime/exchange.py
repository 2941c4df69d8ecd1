"""Put a finished directory in place of another, by a rename or file by file.

A rename shows a reader the old or the new files. Where a place cannot be renamed (a mount
point, the working directory, a parent that is not writable) its files are replaced one by one:
the index that makes them a model goes first and comes last, so that a half-filled place is
never read as one, and a journal names the files, so that the next run can clear them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from spectrim.runtime.files import flush

MARKER = "spectrim_provenance.json"
"""In a directory that spectrim wrote and whose config.json does not say so."""
PREFIX = ".spectrim-"
"""Of the names of what is only there while a directory is written."""
_JOURNAL = f"{PREFIX}filling"
_INDEX = ("config.json", MARKER)
_OWN = re.compile(
    r"config\.json|generation_config\.json|README\.md|spectrim_.*|modeling_spectrim\.py"
    r"|(pytorch_)?model(-\d+-of-\d+)?\.safetensors(\.index\.json)?|model\.onnx.*"
    r"|tokenizer.*|special_tokens_map\.json|added_tokens\.json|vocab\..*|merges\.txt"
    r"|spiece\.model|chat_template\..*|additional_chat_templates"
    r"|(pre)?processor_config\.json|(video|image|audio|feature)_.*config\.json"
)
_SYSTEM = re.compile(rf"\.(?!{re.escape(PREFIX[1:])}).*|lost\+found|__pycache__")


def visible_names(directory: Path) -> list[str]:
    """Return what is in a directory besides hidden files and those of a file system."""
    names = sorted(os.listdir(directory)) if directory.is_dir() else []
    return [n for n in names if not n.startswith(PREFIX) and not _SYSTEM.fullmatch(n)]


def carry_over(source: Path, partial: Path) -> None:
    """Copy what somebody put beside an earlier output; large files are linked, not copied."""
    for path in source.iterdir() if source.is_dir() else ():
        if _OWN.fullmatch(path.name) or path.name.startswith(PREFIX):
            continue
        target = partial / path.name
        if target.exists():
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, target, symlinks=True, copy_function=_link)
        else:
            _link(path, target)


def exchange(partial: Path, target: Path, old: Path) -> None:
    """Rename `partial` to `target`, which is moved to `old` meanwhile, or fill it in place."""
    if target.exists():
        carry_over(target, partial)
        try:
            os.rename(target, old)
        except OSError:
            fill(partial, target)
            return
    try:
        os.rename(partial, target)
    except OSError:
        if old.exists():
            os.rename(old, target)
        raise
    flush(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def fill(partial: Path, target: Path) -> None:
    """Replace the files of `target` by those of `partial`, the index last."""
    names = sorted(os.listdir(partial), key=lambda name: (name in _INDEX, name))
    earlier = [name for name in os.listdir(target) if _OWN.fullmatch(name)]
    journal = target / _JOURNAL
    journal.write_text(json.dumps([*names, *earlier]), encoding="utf-8")
    flush(journal)
    _remove_all(target / name for name in sorted(earlier, key=lambda n: n not in _INDEX))
    for name in names:
        if not (target / name).exists():  # what was carried over stands there already
            shutil.move(partial / name, target / name)
    flush(target)
    journal.unlink()


def recover(target: Path, old: Path) -> None:
    """Undo what an earlier process began and did not finish."""
    if old.exists() and not target.exists():
        os.rename(old, target)
    shutil.rmtree(old, ignore_errors=True)
    journal = target / _JOURNAL
    if journal.is_file():
        with suppress(ValueError, OSError):
            names = json.loads(journal.read_text(encoding="utf-8"))
            own = [n for n in names if isinstance(n, str) and _OWN.fullmatch(n)]
            _remove_all(target / name for name in own)
        journal.unlink(missing_ok=True)


def _remove_all(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)
