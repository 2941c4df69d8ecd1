"""Files that are complete or absent: written beside their place, flushed, then renamed.

Tensor files hold a checksum of each tensor and of their metadata, files of values one of their
content, which is verified when they are read. The permissions of every file follow the umask.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from spectrim.errors import DamagedFileError, InputError

_HEADER, _EARLY_HEADER = "spectrim_checked", "spectrim"
"""The one entry of a tensor file's header: JSON of metadata (as text) and checksums; in files
of early versions the metadata alone. (The order of several entries is random.)"""
_OF_METADATA = ""
_BAD_HEADER = (KeyError, TypeError, ValueError, AttributeError)
_FULL = (errno.ENOSPC, errno.EDQUOT)
LARGEST_TEXT = 64 * 2**20
"""Bytes; a plan of a thousand layers has a hundred thousand."""
_BAD_TEXT = (yaml.YAMLError, ValueError, KeyError, IndexError, AttributeError, TypeError)
"""Exceptions of PyYAML for broken scalars and tags, besides its own."""


def read_mapping(path: Path) -> Any:
    """Return the values of a `.json` or YAML file.

    Raises:
        InputError: the file cannot be read as one.
    """
    try:
        if path.stat().st_size > LARGEST_TEXT:
            raise InputError(f"{path} is larger than {LARGEST_TEXT} bytes: not a text file")
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            return json.loads(text, object_pairs_hook=_unique)
        return yaml.load(text, _UniqueKeys)  # a safe loader
    except (*_BAD_TEXT, OSError, RecursionError) as error:
        reason = str(error).replace("\n", " ")[:200]
        raise InputError(f"{path} cannot be read: {reason}") from error


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a mapping that gives a key twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        _check_unique(key for key in keys if key != "<<")
        return super().construct_mapping(node, deep)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _check_unique(key for key, _ in pairs)
    return dict(pairs)


def _check_unique(keys: Iterable[str]) -> None:
    if twice := [key for key, count in Counter(keys).items() if count > 1]:
        raise ValueError(f"'{twice[0]}' is given twice")


def is_file(path: Path) -> bool:
    """Return whether `path` is a file; False also for a name that the file system refuses."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8, so that readers see the old text or the new one.

    Raises:
        InputError: the place cannot be written to (full disk, no permission).
    """
    _write(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_values(path: Path, values: Any) -> None:
    """Write JSON values with their checksum, for `read_values`. Raises as `write_text`."""
    text = json.dumps(values)
    write_text(path, json.dumps({"values": text, "crc32": zlib.crc32(text.encode())}))


def read_values(path: Path) -> Any:
    """Return the values of a file by `write_values`.

    Raises:
        DamagedFileError: the file is damaged or foreign.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        text, expected = stored["values"], stored["crc32"]
        _compare(path, "content", zlib.crc32(text.encode()), expected)
        return json.loads(text)
    except (OSError, RecursionError, *_BAD_HEADER) as error:
        raise DamagedFileError(
            f"{path} is not a complete spectrim file ({error}); delete it and run again"
        ) from error


def write_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any], sync: bool = True
) -> None:
    """Write a safetensors file with `metadata` as JSON and checksums in its header.

    sync: wait until the file is on the disk, for a file that has to outlive a power failure.

    Raises:
        InputError: the place cannot be written to.
    """
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(metadata)
    sums = {name: _checksum(name, tensor) for name, tensor in contiguous.items()}
    sums[_OF_METADATA] = zlib.crc32(text.encode())
    header = {_HEADER: json.dumps([text, sums])}
    _write(path, lambda partial: save_file(contiguous, partial, header), sync)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and metadata of a file by `write_tensors`.

    Raises:
        InputError: there is no such file.
        DamagedFileError: the file is damaged or foreign.
    """
    with _opened(path) as file:
        metadata, checksums = _header(path, file)
        names = list(file.keys())
        _compare(path, "list of tensors", set(names), set(checksums) or set(names))
        return _verified(path, file, names, checksums), metadata


def read_header(path: Path) -> tuple[list[str], dict[str, Any]]:
    """Return tensor names and metadata of a file by `write_tensors`; raises as above."""
    with _opened(path) as file:
        return list(file.keys()), _header(path, file)[0]


def read_some(path: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Return the tensors `names` of a file by `write_tensors`; raises as above."""
    with _opened(path) as file:
        return _verified(path, file, names, _header(path, file)[1])


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
    except Timeout:
        raise
    except OSError as error:
        raise InputError(f"cannot write {path}: {_reason(error)}") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


def remove_abandoned(path: Path) -> None:
    """Remove what a killed process left beside the file `path` while it wrote it."""
    partial, lock = _beside(path, "partial"), _beside(path, "lock")
    if partial.exists() or lock.exists():
        with suppress(Timeout, InputError), lock_file(lock, timeout=0):
            shutil.rmtree(partial, ignore_errors=True)


def flush(path: Path) -> None:
    """Wait until a file, or a directory's list of files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_full_disk(error: BaseException) -> bool:
    """Return whether an error is ENOSPC, also if another library wraps it in its own error."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    wrapped = [f"os error {number})" for number in _FULL] + [f"[Errno {n}]" for n in _FULL]
    return "No space left" in str(error) or any(text in str(error) for text in wrapped)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError as error:
        raise InputError(f"no file {path}") from error
    except (SafetensorError, OSError, *_BAD_HEADER) as error:
        raise DamagedFileError(
            f"{path} is not a complete spectrim file ({error}); delete it and run again"
        ) from error


def _header(path: Path, file: Any) -> tuple[Any, dict[str, int]]:
    """Return metadata and checksums; files of early versions have no checksums."""
    header = file.metadata() or {}
    if _EARLY_HEADER in header:
        return json.loads(header[_EARLY_HEADER]), {}
    text, checksums = json.loads(header[_HEADER])
    _compare(path, "metadata", zlib.crc32(text.encode()), checksums.pop(_OF_METADATA))
    return json.loads(text), checksums


def _verified(
    path: Path, file: Any, names: Iterable[str], checksums: dict[str, int]
) -> dict[str, Tensor]:
    tensors = {name: file.get_tensor(name) for name in names}
    for name, tensor in tensors.items() if checksums else ():
        _compare(path, f"tensor '{name}'", _checksum(name, tensor), checksums.get(name))
    return tensors


def _compare(path: Path, what: str, found: object, expected: object) -> None:
    if found != expected:
        raise DamagedFileError(
            f"{path} is damaged: its {what} does not match its checksum; delete it and "
            "run again"
        )


def _checksum(name: str, tensor: Tensor) -> int:
    """Return the CRC of a tensor's bytes, with its name, dtype and shape."""
    start = zlib.crc32(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}".encode())
    data = tensor.cpu().reshape(-1).view(torch.uint8).numpy()
    return zlib.crc32(data.data, start)


def _write(path: Path, write: Callable[[Path], Any], sync: bool = True) -> None:
    try:
        with lock_file(_beside(path, "lock")):
            # a directory: save_file writes beside its target first, under a name of its own
            partial = _beside(path, "partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            try:
                _write_into(partial, path, write, sync)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except Timeout:
        raise
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot write {path}: {_reason(error)}") from error


def _write_into(partial: Path, path: Path, write: Callable[[Path], Any], sync: bool) -> None:
    file = partial / path.name
    write(file)
    file.chmod(partial.stat().st_mode & 0o666)
    if sync:
        flush(file)
    os.replace(file, path)
    if sync:
        flush(path.parent)


def _beside(path: Path, role: str) -> Path:
    return path.with_name(f".{path.name}.{role}")


def _reason(error: Exception) -> str:
    if is_full_disk(error):
        return "the disk is full; free some space or choose another place"
    if getattr(error, "errno", None) == errno.EFBIG:
        return "the file is larger than this shell allows (ulimit -f); raise the limit"
    return str(error)
