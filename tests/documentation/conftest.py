"""The scripts that make the site's pages, importable as mkdocs imports them."""

from __future__ import annotations

import sys

import pytest

from tests.documentation.pages import MAKERS


@pytest.fixture(autouse=True, scope="package")
def _importable():
    sys.path.insert(0, str(MAKERS))
    yield
    sys.path.remove(str(MAKERS))
