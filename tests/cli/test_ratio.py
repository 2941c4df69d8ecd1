"""`--ratio 0.2` is `--budget 0.8`, on every command that makes a recipe."""

from __future__ import annotations

import pytest

from spectrim.cli.options import OPTIONS, _with_budget, recipe_of
from spectrim.errors import InputError

NOTHING = dict.fromkeys(OPTIONS) | {"recipe": "default", "no_cache": False}


def test_a_ratio_is_what_a_budget_leaves():
    given = _with_budget(NOTHING | {"ratio": 0.2})
    assert "ratio" not in given
    assert recipe_of(given).budget == 0.8
    assert recipe_of(_with_budget(NOTHING | {"budget": 0.7})).budget == 0.7
    assert recipe_of(_with_budget(NOTHING)) == recipe_of(_with_budget(NOTHING | {"ratio": 0.2}))


@pytest.mark.parametrize("ratio", [1.0, -0.1, float("nan")])
def test_a_ratio_outside_of_its_range_is_refused(ratio):
    with pytest.raises(InputError, match=r"--ratio .*the fraction that is removed"):
        _with_budget(NOTHING | {"ratio": ratio})


def test_ratio_and_budget_contradict_each_other():
    with pytest.raises(InputError, match="choose one of --budget and --ratio"):
        _with_budget(NOTHING | {"ratio": 0.2, "budget": 0.8})
