"""Files that are complete or absent: written under a temporary name, then renamed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from spectrim.errors import CheckpointError, InputError
from spectrim.runtime.processes import is_dead, this_process

_PARTIAL = ".tmp"
_FULL = (errno.ENOSPC, errno.EDQUOT)
LARGEST_TEXT = 64 * 2**20
"""Bytes; a plan of a thousand layers has a hundred thousand."""
_BAD_TEXT = (yaml.YAMLError, ValueError, KeyError, IndexError, AttributeError, TypeError)
"""What PyYAML raises for broken scalars and tags, besides its own errors."""


def read_mapping(path: Path) -> Any:
    """The values of a `.json` or YAML file. Raises InputError when it cannot be read as one."""
    try:
        if path.stat().st_size > LARGEST_TEXT:
            raise InputError(f"{path} is larger than {LARGEST_TEXT} bytes: not a text file")
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (*_BAD_TEXT, OSError, RecursionError) as error:
        reason = str(error).replace("\n", " ")[:200]
        raise InputError(f"{path} cannot be read: {reason}") from error


def is_file(path: Path) -> bool:
    """False also for a name that the file system refuses."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def write_text(path: Path, text: str) -> None:
    """Raises InputError when the place cannot be written (full disk, no permission)."""
    _write(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """A safetensors file with `metadata` as JSON in its header. Raises InputError as above."""
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    header = {"spectrim": json.dumps(metadata)}
    _write(path, lambda partial: save_file(contiguous, partial, header))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_tensors` wrote. Raises CheckpointError for a damaged or foreign file."""
    with _opened(path) as file:
        header = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads(header["spectrim"])


def read_header(path: Path) -> tuple[list[str], dict[str, Any]]:
    """Names of the tensors, and metadata, of what `write_tensors` wrote; raises as above."""
    with _opened(path) as file:
        return list(file.keys()), json.loads((file.metadata() or {})["spectrim"])


def read_some(path: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Only these tensors of what `write_tensors` wrote; raises as above."""
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in names}


@contextmanager
def lock_file(path: Path, timeout: float = -1) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`, which is removed with the lock.

    The operating system frees the lock of a process that ended, so a file that is left behind
    locks nobody out.

    Raises:
        filelock.Timeout: another process holds it for longer than `timeout` seconds.
        InputError: the place cannot be written to.
    """
    lock = FileLock(path, timeout=timeout)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        if isinstance(error, Timeout):
            raise
        raise InputError(f"cannot write {path}: {_reason(error)}") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError as error:
        raise InputError(f"no file {path}") from error
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a complete spectrim file ({error}); delete it and run again"
        ) from error


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path)
        # a directory: save_file writes beside its target first, under a name of its own
        start = f"{path.name}.{this_process().replace(' ', '~')}."
        directory = Path(tempfile.mkdtemp(prefix=start, suffix=_PARTIAL, dir=path.parent))
        try:
            write(directory / path.name)
            os.replace(directory / path.name, path)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot write {path}: {_reason(error)}") from error


def remove_abandoned(path: Path) -> None:
    """What processes left of this file that were killed while they wrote it."""
    try:
        beside = os.listdir(path.parent)
    except OSError:
        return
    for found in beside:
        if found.startswith(f"{path.name}.") and found.endswith(_PARTIAL):
            writer = found[len(path.name) + 1 : -len(_PARTIAL)].rpartition(".")[0]
            if is_dead(writer.replace("~", " ")):
                shutil.rmtree(path.parent / found, ignore_errors=True)


def _reason(error: Exception) -> str:
    if is_full_disk(error):
        return "the disk is full; free some space or choose another place"
    return str(error)


def is_full_disk(error: BaseException) -> bool:
    """True for ENOSPC, also where safetensors or shutil wrap it in an error of their own."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    wrapped = [f"os error {number})" for number in _FULL] + [f"[Errno {n}]" for n in _FULL]
    return "No space left" in str(error) or any(text in str(error) for text in wrapped)
