"""Adapters are listed, and their package is light until one is used."""

from __future__ import annotations

import pytest

import spectrim.adapters as room
from spectrim.adapters import ADAPTERS
from spectrim.pipeline.catalog import list_methods
from tests.test_startup import HEAVY, loaded_by


def test_the_listing_names_needs_and_sources():
    entries = {entry["name"]: entry for entry in list_methods()["adapters"]}
    assert set(entries) == set(ADAPTERS.names())
    assert "lora" not in entries, "PEFT's own are not listed as ours"
    assert entries["obd"]["needs"] == ["input_covariance", "gradient_covariance"]
    assert "arXiv" in entries["svfit"]["reference"]


def test_every_configuration_is_a_name_of_the_package():
    titles = {f"{ADAPTERS.get(name).TITLE}Config" for name in ADAPTERS.names()}
    assert titles <= set(dir(room))
    assert all(getattr(room, title).__module__ == "spectrim.adapters" for title in titles)
    with pytest.raises(AttributeError, match="no attribute 'SVFittConfig'"):
        room.SVFittConfig  # noqa: B018


@pytest.mark.slow
def test_importing_the_package_loads_nothing_heavy():
    assert loaded_by("import spectrim.adapters") & (HEAVY | {"peft"}) == set()
