"""A place without room is found before anything is written there."""

from __future__ import annotations

import resource
import shutil
from types import SimpleNamespace

import pytest

from spectrim.errors import InputError
from spectrim.runtime.space import check_space


def test_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=1000))
    check_space(tmp_path / "not" / "there", 1000, 1000)
    with pytest.raises(InputError, match="at least 1,001 bytes, and 1,000 are free"):
        check_space(tmp_path / "not" / "there", 1001, 10)


def test_a_limit_of_the_shell(tmp_path, monkeypatch):
    limits = (500, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda what: limits)
    check_space(tmp_path, 1000, 500)
    with pytest.raises(InputError, match=r"files of 500 bytes \(ulimit -f\)"):
        check_space(tmp_path, 1000, 501)
