"""Files, public names and recipe fields that the pages name are there."""

from __future__ import annotations

import importlib
import re
from dataclasses import fields

import pytest

import spectrim
from spectrim.pipeline.recipe import Recipe
from spectrim.pipeline.renamed import check_field
from tests.documentation.pages import ROOT, WRITTEN

ROOMS = "spectrim|spectrim_vllm|tests|benchmarks|examples|scripts|docs"
FILE = re.compile(rf"(?<![\w/.])(?:{ROOMS})/[\w./-]*\w")
IMPORT = re.compile(r"^from (spectrim[\w.]*) import (.+)$", re.M)
PUBLIC = re.compile(r"\bspectrim\.([A-Za-z]\w*)\b(?!\.\w|-)")
FIELD = re.compile(r"--set ([a-z_.]+)=")
ENTRY_POINTS = {"spectrim.trackers"}
BY_NAME = pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)


def _text(page):
    return page.read_text(encoding="utf-8")


@BY_NAME
def test_files_exist(page):
    missing = {path for path in FILE.findall(_text(page)) if not (ROOT / path).exists()}
    assert missing == set()


@BY_NAME
def test_imported_names_exist(page):
    for module, names in IMPORT.findall(_text(page)):
        loaded = importlib.import_module(module)
        for name in names.split(", "):
            assert hasattr(loaded, name) or importlib.import_module(f"{module}.{name}")


@BY_NAME
def test_public_names_exist(page):
    named = {f"spectrim.{name}" for name in PUBLIC.findall(_text(page))} - ENTRY_POINTS
    modules = {path.stem for path in (ROOT / "spectrim").iterdir()}
    known = {f"spectrim.{name}" for name in {*spectrim.__all__, *modules}}
    assert named - known == set()


@BY_NAME
def test_recipe_fields_exist(page):
    known = {field.name for field in fields(Recipe)}
    for path in FIELD.findall(_text(page)):
        check_field(path, page.name)
        assert path.partition(".")[0] in known, path
