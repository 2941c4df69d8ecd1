"""A factored table from the command line."""

from __future__ import annotations

import json

import pytest
import yaml

from tests.cli.conftest import SMALL


@pytest.mark.slow
def test_set_turns_it_on(cli, shelf, tmp_path):
    done = cli(
        "compress", shelf / "model", "-o", tmp_path / "out", "--data", shelf / "text.txt",
        *SMALL, "--no-probe", "--set", "embeddings.budget=0.5",
        "--set", "embeddings.method=svd",
    )  # fmt: skip
    assert done.code == 0, done.err
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    entry = config["quantization_config"]["embeddings"]
    assert entry == {"name": "model.embed_tokens", "rank": 12, "mean": False, "head": None}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "embedding table factored by svd at budget 0.5" in card
    recipe = yaml.safe_load((tmp_path / "out" / "spectrim_recipe.yaml").read_text())
    assert recipe["embeddings"] == {"budget": 0.5, "method": "svd", "options": {}}


def test_what_is_no_field_stays_an_error(cli, shelf, tmp_path):
    for wrong, part in (("embeddings.nothing=1", "nothing"), ("save_dtype.x=1", "save_dtype")):
        failed = cli("compress", shelf / "model", "-o", tmp_path / "out", "--set", wrong)
        assert part in failed.failed_with_one_line()


def test_ls_lists_the_metrics(cli):
    found = json.loads(cli("ls", "--json").out)["embeddings"]
    assert {entry["name"] for entry in found} >= {"afm", "obd", "svd"}
