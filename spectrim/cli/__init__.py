"""The command line: parse, call a verb, print. A user's error is one line, exit code 2."""

from __future__ import annotations

import os
import sys
import warnings

from spectrim.cli.interrupts import Terminated, raise_on_termination
from spectrim.errors import SpectrimError

FAILED = 2
TERMINATED = 128 + 15


def main() -> None:
    """Run the command line and exit."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.showwarning = _one_line
    raise_on_termination()
    try:
        _run()
    except SpectrimError as error:
        _fail(str(error))
    except Terminated:
        _fail("terminated", TERMINATED)
    except KeyboardInterrupt:
        _fail("interrupted")
    except (MemoryError, RuntimeError) as error:
        _explain(error)


def _run() -> None:
    from spectrim.cli.app import app

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        app(prog_name="spectrim")
        return
    from spectrim.cli.torchrun import group

    with group():
        app(prog_name="spectrim")


def _explain(error: MemoryError | RuntimeError) -> None:
    """Exit with one line for an error that is not a bug; raise others again."""
    from spectrim.cli.torchrun import is_first_failure, is_lost

    if is_lost(error):
        _fail("another process of this run has ended; see why above, and start again")
    if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
        is_first_failure()
        raise error
    _fail("out of memory; use a shorter --length or --set calibration.tokens_per_batch=N")


def _fail(message: str, code: int = FAILED) -> None:
    if _is_first_failure():
        print(f"error: {' '.join(message.splitlines())}", file=sys.__stderr__)
        sys.stderr.flush()
    sys.exit(code)


def _is_first_failure() -> bool:
    """Return whether this process reports the error; the others end silently."""
    if "torch" not in sys.modules:
        return True
    from spectrim.cli.torchrun import is_first_failure

    return is_first_failure()


def _one_line(
    message: Warning | str, category: type[Warning], *place: object, **more: object
) -> None:
    print(f"warning: {message}", file=sys.stderr)
