"""Let unmodified programs read our checkpoints: `spectrim activate`.

Two files go into site-packages: a `.pth` line that Python runs when it starts, and the
tiny module it imports. Nothing else happens until transformers' table of quantizers is
imported; spectrim itself is imported when a checkpoint names it.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path

from spectrim.errors import InputError

NAME = "_spectrim_import_hook"
SOURCE = Path(__file__).parents[2] / "import_hook.py"


def activate(site_packages: str | Path | None = None) -> Path:
    """Install the hook, by default in the running environment. Raises InputError."""
    module, line = _files(site_packages)
    try:
        module.write_text(SOURCE.read_text(encoding="utf-8"), encoding="utf-8")
        line.write_text(f"import {NAME}\n", encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"cannot write to {module.parent}: {error.strerror}; "
            "use a virtual environment, or import spectrim in the program itself"
        ) from error
    return line


def deactivate(site_packages: str | Path | None = None) -> bool:
    """Remove the hook; False when there was none. Raises InputError."""
    module, line = _files(site_packages)
    was_active = line.exists()
    try:
        line.unlink(missing_ok=True)
        module.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot remove {line}: {error.strerror}") from error
    return was_active


def is_active(site_packages: str | Path | None = None) -> bool:
    """Return whether the environment's programs load compressed models without an import."""
    return all(file.exists() for file in _files(site_packages))


def _files(site_packages: str | Path | None) -> tuple[Path, Path]:
    directory = Path(site_packages or sysconfig.get_path("purelib"))
    return directory / f"{NAME}.py", directory / "spectrim_activate.pth"
