"""The command line: parse, call a verb, print. A user's error is one line, exit code 2."""

from __future__ import annotations

import os
import sys
import warnings

from spectrim.errors import SpectrimError

FAILED = 2


def main() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.showwarning = _one_line
    try:
        import spectrim.cli.bench
        import spectrim.cli.bench_speed
        import spectrim.cli.explore
        import spectrim.cli.finetune
        import spectrim.cli.inspect
        import spectrim.cli.quantize
        import spectrim.cli.recipes
        import spectrim.cli.report  # noqa: F401  adds its command
        from spectrim.cli.commands import app
        from spectrim.cli.torchrun import group

        with group():
            app(prog_name="spectrim")
    except SpectrimError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _fail("interrupted")
    except (MemoryError, RuntimeError) as error:
        from spectrim.cli.torchrun import is_lost

        if is_lost(error):
            _fail("another process of this run has ended; see why above, and start again")
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            _failed_first()
            raise
        _fail("out of memory; use a shorter --length or --set calibration.tokens_per_batch=N")


def _fail(message: str) -> None:
    if _failed_first():
        print(f"error: {' '.join(message.splitlines())}", file=sys.__stderr__)
        sys.stderr.flush()
    sys.exit(FAILED)


def _failed_first() -> bool:
    """Of several processes, each of which says once that it failed."""
    from spectrim.cli.torchrun import is_first_failure

    return is_first_failure()


def _one_line(
    message: Warning | str, category: type[Warning], *place: object, **more: object
) -> None:
    print(f"warning: {message}", file=sys.stderr)
