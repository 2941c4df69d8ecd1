from __future__ import annotations

import importlib.util
import sys
from types import SimpleNamespace

import pytest

from spectrim.checkpoint import activate, deactivate, is_active
from spectrim.errors import InputError

pytestmark = pytest.mark.slow


def test_activate_and_deactivate(tmp_path):
    assert not is_active(tmp_path)
    assert activate(tmp_path).suffix == ".pth"
    activate(tmp_path)
    assert is_active(tmp_path)
    assert deactivate(tmp_path)
    assert not deactivate(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_default_place_is_site_packages(tmp_path, monkeypatch):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    activate()
    assert is_active(tmp_path)


def test_a_place_that_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match="import spectrim"):
        activate(tmp_path / "missing")


@pytest.fixture
def hook(tmp_path, monkeypatch):
    activate(tmp_path)
    spec = importlib.util.spec_from_file_location("hook", tmp_path / "_spectrim_import_hook.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    spec.loader.exec_module(module)
    return module


def test_the_hook_leaves_other_imports_alone(hook):
    assert hook._Finder.find_spec("json") is None
    assert sys.meta_path[0] is hook._Finder


def test_without_spectrim_nothing_is_added(hook, monkeypatch):
    tables = SimpleNamespace(AUTO_QUANTIZATION_CONFIG_MAPPING={})
    hook._add_entry(tables)
    assert list(tables.AUTO_QUANTIZATION_CONFIG_MAPPING) == ["spectrim"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    tables = SimpleNamespace(AUTO_QUANTIZATION_CONFIG_MAPPING={})
    hook._add_entry(tables)
    assert tables.AUTO_QUANTIZATION_CONFIG_MAPPING == {}
