"""Every family of causal language models: compressed, loaded, generated, or told why not."""

from __future__ import annotations

import re

import pytest

from tests.families.configs import FAMILIES, Family
from tests.families.running import run_family

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_family(family: Family, tmp_path):
    outcome = run_family(family, tmp_path)
    if family.refused:
        assert outcome.status == "refused"
        assert re.search(family.refused, outcome.detail)
        return
    assert outcome.status == ("partly dense" if family.dense else "full"), outcome.detail
    assert outcome.factored > 0
    assert all(re.search(family.dense, name) for name in outcome.dense)


def test_the_table_is_as_wide_as_it_says():
    assert len({str(family) for family in FAMILIES}) == len(FAMILIES)
    assert sum(not family.refused for family in FAMILIES) >= 150
