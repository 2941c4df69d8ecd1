"""Real models and texts kept beside the repository; tests that need them skip without."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_BESIDE = Path(__file__).resolve().parents[1] / ".." / "shared"


def shared_model(name: str) -> Path:
    return _present("models", name)


def shared_data(*parts: str) -> Path:
    return _present("data", *parts)


def _present(*parts: str) -> Path:
    root = Path(os.environ.get("SPECTRIM_SHARED", _BESIDE))
    path = root.joinpath(*parts).resolve()
    if not path.exists():
        pytest.skip(f"no {'/'.join(parts)} under SPECTRIM_SHARED or ../shared")
    return path
