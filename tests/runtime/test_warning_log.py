"""Warnings of a result are recorded and given again."""

from __future__ import annotations

import json
import warnings

import pytest

from spectrim.errors import NumericalWarning
from spectrim.runtime.warning_log import recorded_warnings, repeat_warnings


def test_recorded_shown_and_repeated():
    def warn() -> list[list[str]]:
        with recorded_warnings() as given:
            for _ in range(2):
                warnings.warn("damped", NumericalWarning, stacklevel=2)
            warnings.warn("of another library", UserWarning, stacklevel=2)
            warnings.warn("old", DeprecationWarning, stacklevel=2)
        return given

    with pytest.warns(NumericalWarning, match="damped") as shown:
        given = warn()
    assert {str(each.message) for each in shown} == {"damped", "of another library", "old"}
    assert given == [["NumericalWarning", "damped"]]
    stored = json.loads(json.dumps(given))
    with pytest.warns(NumericalWarning, match="damped") as again:
        repeat_warnings([*stored, *stored])
    assert len(again) == 1


def test_nothing_is_given_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with recorded_warnings() as given:
            pass
        repeat_warnings(given)
    assert given == []
