"""The processes of one job that run on the same machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from spectrim.runtime import distributed


@contextmanager
def shared_directory(write: Callable[[Path], None]) -> Iterator[Path]:
    """Yield a directory of this machine that its first process has filled by `write`.

    It is removed when all processes have left the context. Files that they have mapped stay
    readable to them. An error of `write` is raised in all processes.
    """
    with ExitStack() as stack:
        own: dict[str, str] = {}
        with distributed.raise_together():
            if _is_first_here():
                place = stack.enter_context(TemporaryDirectory(prefix="spectrim-"))
                write(Path(place))
                own = {_machine(): place}
        yield Path(distributed.gather_dict(own)[_machine()])
        distributed.all_true(True)  # all have opened what they need


def _machine() -> str:
    """Return torchrun's number of the machine."""
    return os.environ.get("GROUP_RANK", "0")


def _is_first_here() -> bool:
    return int(os.environ.get("LOCAL_RANK", distributed.process_index())) == 0
