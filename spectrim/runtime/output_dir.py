"""Output directories that appear complete or not at all.

Everything is written to a hidden sibling, flushed to the disk, and renamed. An earlier
output is moved aside first and comes back if the exchange was interrupted.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import Timeout

from spectrim.errors import InputError
from spectrim.runtime.files import flush, is_full_disk, lock_file
from spectrim.version import QUANT_METHOD

MARKER = "spectrim_provenance.json"
"""A file in directories of spectrim whose config.json does not name it."""


@contextmanager
def output_directory(directory: str | Path, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary directory that becomes `directory` if the block ends without an error.

    Args:
        directory: the place of the output.
        overwrite: whether an earlier output of spectrim, and nothing else, may be replaced.

    Raises:
        InputError: the directory is in use, another run writes to it, or the disk is full.
    """
    target = Path(os.path.abspath(Path(directory).expanduser()))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with lock_file(_sibling(target, "lock"), timeout=0):
            _recover(target)
            _check_target(target, overwrite)
            with _fresh(_sibling(target, "partial")) as partial:
                yield partial
                _flush(partial)
                _exchange(partial, target)
    except Timeout as error:
        raise InputError(
            f"another run is writing to {directory}; wait for it, or choose another directory"
        ) from error
    except Exception as error:
        if is_full_disk(error):
            raise InputError(
                f"no space left on the disk for {directory}; nothing was written there"
            ) from error
        if isinstance(error, NotADirectoryError | FileExistsError | PermissionError):
            raise InputError(f"cannot write to {directory}: {error.strerror}") from error
        raise


def check_output(directory: str | Path, overwrite: bool) -> None:
    """Check before long work that `output_directory` would accept a place.

    Raises:
        InputError: it would not.
    """
    _check_target(Path(os.path.abspath(Path(directory).expanduser())), overwrite)


def is_spectrim_output(directory: Path) -> bool:
    """Return whether spectrim wrote the directory."""
    if (directory / MARKER).is_file():
        return True
    try:
        config = json.loads((directory / "config.json").read_text())
        return config["quantization_config"]["quant_method"] == QUANT_METHOD
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _sibling(target: Path, role: str) -> Path:
    return target.with_name(f".{target.name}.spectrim-{role}")


def _recover(target: Path) -> None:
    """Undo an exchange that an earlier process did not finish."""
    old = _sibling(target, "old")
    if old.exists() and not target.exists():
        os.rename(old, target)
    _remove(old)


def _check_target(target: Path, overwrite: bool) -> None:
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file, expected a directory to write to")
    if not target.exists() or not any(target.iterdir()):
        return
    if not is_spectrim_output(target):
        raise InputError(f"{target} holds files that spectrim did not write; choose another")
    if not overwrite:
        raise InputError(f"{target} already holds a result; choose another, or overwrite it")


@contextmanager
def _fresh(partial: Path) -> Iterator[Path]:
    _remove(partial)
    partial.mkdir()
    try:
        yield partial
    finally:
        _remove(partial)


def _remove(directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)


def _exchange(partial: Path, target: Path) -> None:
    old = _sibling(target, "old")
    if target.exists():
        os.rename(target, old)
    try:
        os.rename(partial, target)
    except OSError:
        if old.exists():
            os.rename(old, target)
        raise
    flush(target.parent)
    _remove(old)


def _flush(partial: Path) -> None:
    """Flush everything to the disk, with the directory's permissions as the umask gave them."""
    mode = partial.stat().st_mode & 0o666
    for path in partial.rglob("*"):
        if path.is_file():
            path.chmod(mode)
        flush(path)
    flush(partial)
