"""Presets as files, and the licence that a card keeps."""

from __future__ import annotations

import json

import pytest

from spectrim.checkpoint.card import license_of, stated_license
from spectrim.pipeline.presets import PRESETS, load_recipe


def test_presets_are_listed(cli):
    done = cli("recipes", "list", "--json")
    assert done.code == 0, done.err
    assert list(json.loads(done.out)) == list(PRESETS)
    shown = cli("recipes", "list").out
    assert all(name in shown for name in PRESETS)


@pytest.mark.few(6)
@pytest.mark.parametrize("name", PRESETS)
def test_a_copy_is_the_preset(cli, tmp_path, name):
    assert cli("recipes", "copy", name).code == 0
    assert load_recipe(str(tmp_path / f"{name}.yaml")) == PRESETS[name]
    assert "exists" in cli("recipes", "copy", name).failed_with_one_line()
    assert cli("recipes", "copy", name, "--overwrite").code == 0
    assert cli("recipes", "copy", name, "-o", "other.yaml").code == 0


def test_a_preset_that_is_not_there(cli):
    assert "default" in cli("recipes", "copy", "nothing").failed_with_one_line()


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: mit\n---\n# A", "mit"),
        ("---\nlicense: [mit]\n---\n", None),
        ("---\nlicense: {\n---\n", None),
        ("# A\n---\nlicense: mit\n---\n", None),
        ("---\nlicense: mit", None),  # not closed: the Hub reads no metadata either
        ("", None),
    ],
)
def test_the_license_of_a_card(card, expected):
    assert stated_license(card) == expected


def test_the_license_of_the_base_is_kept(compress, shelf, tmp_path):
    assert license_of("reference") == "apache-2.0"
    assert license_of(str(shelf / "model")) is None
    done = compress("-o", "out", "--recipe", "fast", "--budget", "0.6")
    assert done.code == 0, done.err
    assert "license" not in (tmp_path / "out" / "README.md").read_text()


def test_levels_and_json(cli, shelf, compress, tmp_path):
    done = compress("-o", "out", "--recipe", "fast", "--budget", "0.6", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["plan"]["kept"] <= 0.6
    assert "saved to out" in done.err
    tune = ("finetune", "out", "--data", shelf / "text.txt", "--length", 16, "--sequences", 8)
    quiet = cli("-q", *tune, "-o", "quiet", "--steps", 2)
    assert (quiet.code, quiet.err) == (0, "")
    told = cli("--verbose", *tune, "-o", "told", "--steps", 3)
    assert told.code == 0, told.err
    assert "step 1 of 3, loss" in told.err
    assert "--verbose and --quiet" in cli("-v", "-q", "ls").failed_with_one_line()
