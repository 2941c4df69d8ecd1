"""A directory that appears complete or not at all.

Everything is written to a hidden directory beside it, flushed to the disk, and renamed. An
earlier output is moved aside first and comes back if the exchange was interrupted; files that
somebody put beside it are carried over. Places that cannot be renamed are filled in place.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout

from spectrim.errors import InputError
from spectrim.runtime import distributed
from spectrim.runtime.exchange import (
    MARKER,
    PREFIX,
    carry_over,
    exchange,
    fill,
    recover,
    visible_names,
)
from spectrim.runtime.files import flush, is_full_disk, lock_file
from spectrim.version import QUANT_METHOD

_LONGEST_NAME = 255
_UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.EPERM, errno.ENOSYS)
"""Error numbers of file systems without fsync of directories or without permissions."""
_SHOWN = 3


@contextmanager
def output_directory(directory: str | Path, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary directory that becomes `directory` if the block ends without an error.

    Args:
        directory: The place of the output.
        overwrite: Whether an earlier output of spectrim, and nothing else, may be replaced.

    Raises:
        InputError: The directory is in use, another run writes to it, or it cannot be written.
    """
    with _explain(directory):
        place = _Place.of(directory)
        with _claim(place, overwrite) as partial:
            yield partial
            _flush(partial)
            if place.in_place:
                carry_over(place.target, partial)
                fill(partial, place.target)
            else:
                exchange(partial, place.target, place.path("old"))


def check_output(directory: str | Path, overwrite: bool) -> None:
    """Try before long work all that `output_directory` does, and leave nothing behind.

    Raises:
        InputError: A result could not be written there.
    """
    distributed.run_on_main(lambda: _try(directory, overwrite))


def is_spectrim_output(directory: Path) -> bool:
    """Return whether spectrim wrote the directory."""
    if (directory / MARKER).is_file():
        return True
    try:
        config = json.loads((directory / "config.json").read_text())
        return config["quantization_config"]["quant_method"] == QUANT_METHOD
    except (OSError, ValueError, KeyError, TypeError):
        return False


@dataclass(frozen=True)
class _Place:
    """The place of a directory to be written, renamed into it or filled in place."""

    target: Path
    in_place: bool

    @classmethod
    def of(cls, directory: str | Path) -> _Place:
        target = Path(os.path.realpath(Path(directory).expanduser()))
        if len(os.fsencode(target.name)) > _LONGEST_NAME:
            raise InputError(
                f"the name of {directory} has {len(os.fsencode(target.name))} bytes, a file "
                f"system takes {_LONGEST_NAME}; choose a shorter one"
            )
        return cls(target, target.is_dir() and _stays(target))

    def path(self, role: str) -> Path:
        """Return the path of something that is only there while the directory is written."""
        if self.in_place:
            return self.target / f"{PREFIX}{role}"
        name = f".{self.target.name}{PREFIX}{role}"
        if len(os.fsencode(name)) > _LONGEST_NAME:
            name = f"{PREFIX}{role}-{zlib.crc32(os.fsencode(self.target.name)):08x}"
        return self.target.with_name(name)


def _stays(target: Path) -> bool:
    """Return whether a directory cannot be renamed, or should not: processes work in it."""
    here = Path.cwd()
    inside = here == target or target in here.parents
    return inside or os.path.ismount(target) or not os.access(target.parent, os.W_OK | os.X_OK)


def _try(directory: str | Path, overwrite: bool) -> None:
    with _explain(directory), ExitStack() as stack:
        place = _Place.of(directory)
        for parent in reversed([p for p in place.target.parents if not p.exists()]):
            stack.callback(_remove_if_empty, parent)
        with _claim(place, overwrite) as partial:
            (partial / "try").write_text("spectrim", encoding="utf-8")
            _flush(partial)


@contextmanager
def _claim(place: _Place, overwrite: bool) -> Iterator[Path]:
    """Hold the lock of a place that may be written, with an empty directory to write to."""
    if place.target.exists() and not place.target.is_dir():
        raise InputError(f"{place.target} is a file, expected a directory to write to")
    place.target.parent.mkdir(parents=True, exist_ok=True)
    _check_writable(place.path("lock").parent)
    with lock_file(place.path("lock"), timeout=0):
        recover(place.target, place.path("old"))
        _check_target(place.target, overwrite)
        partial = place.path("partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _check_writable(directory: Path) -> None:
    if not os.access(directory, os.W_OK | os.X_OK):
        raise InputError(f"{directory} cannot be written to; choose another place")


def _check_target(target: Path, overwrite: bool) -> None:
    names = visible_names(target)
    if not names:
        return
    if not is_spectrim_output(target):
        shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
        raise InputError(
            f"{target} holds files that spectrim did not write ({shown}); choose another"
        )
    if not overwrite:
        raise InputError(f"{target} already holds a result; choose another, or overwrite it")


@contextmanager
def _explain(directory: str | Path) -> Iterator[None]:
    """Raise InputError for what a file system raises."""
    try:
        yield
    except InputError:
        raise
    except Timeout as error:
        raise InputError(
            f"another run is writing to {directory}; wait for it, or choose another directory"
        ) from error
    except Exception as error:
        if is_full_disk(error):
            raise InputError(
                f"no space left on the disk for {directory}; nothing was written there"
            ) from error
        if isinstance(error, OSError) or "os error" in str(error):
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise InputError(f"cannot write to {directory}: {reason}") from error
        if isinstance(error, ValueError | RuntimeError) and str(error) in _NO_PATH:
            raise InputError(f"'{directory}' is no path: {error}") from error
        raise


_NO_PATH = ("embedded null byte", "Could not determine home directory.")


def _remove_if_empty(directory: Path) -> None:
    with suppress(OSError):
        directory.rmdir()


def _flush(partial: Path) -> None:
    """Flush everything to the disk, with the directory's permissions as the umask gave them."""
    mode = partial.stat().st_mode & 0o666
    for path in [*partial.rglob("*"), partial]:
        try:
            if path.is_file():
                path.chmod(mode)
            flush(path)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
