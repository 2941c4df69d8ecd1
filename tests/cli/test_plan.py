"""`spectrim plan`: the curve, its picture, and plans that are edited and followed."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest
import torch
import yaml

from tests.cli.results import logits, ranks_in
from tests.tolerances import FULL_RANK_ABSOLUTE


def test_plan_shows_a_table_and_draws_the_curve(plan, tmp_path):
    done = plan("--plot", "curve.svg", "--budget", 0.6)
    assert done.code == 0, done.err
    assert "predicted loss" in done.out
    assert "0.60" in done.out
    drawing = ElementTree.parse(tmp_path / "curve.svg").getroot()
    assert drawing.tag.endswith("svg")
    assert len(drawing.findall(".//{*}circle")) > 5
    assert [path.name for path in tmp_path.iterdir()] == ["curve.svg"]


def test_plan_as_json_is_one_document(plan):
    done = plan("--json", "--budget", 0.6)
    assert done.code == 0, done.err
    values = json.loads(done.out)
    losses = [point["predicted_loss"] for point in values["curve"]]
    assert losses == sorted(losses, reverse=True)
    assert values["plan"]["kept"] <= 0.6


@pytest.mark.few(1)
@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_an_edited_plan_is_followed(plan, compress, tmp_path, suffix):
    file = tmp_path / f"plan.{suffix}"
    assert plan("-o", file, "--budget", 0.6).code == 0
    read, write = (
        (yaml.safe_load, yaml.safe_dump) if suffix == "yaml" else (json.loads, json.dumps)
    )
    values = read(file.read_text())
    name = "model.layers.1.mlp.up_proj"
    values["layers"][name]["rank"] = 5
    values["layers"]["model.layers.0.self_attn.q_proj"]["rank"] = None
    file.write_text(write(values))
    done = compress("-o", "out", "--plan", file)
    assert done.code == 0, done.err
    ranks = ranks_in(tmp_path / "out")
    assert ranks[name] == 5
    assert "model.layers.0.self_attn.q_proj" not in ranks
    untouched = "model.layers.1.mlp.down_proj"
    assert ranks.get(untouched) == values["layers"][untouched]["rank"]
    assert torch.isfinite(logits(tmp_path / "out")).all()


@pytest.mark.slow
def test_a_plan_at_full_rank_is_followed(plan, compress, shelf, tmp_path):
    file = tmp_path / "plan.json"
    assert plan("-o", file).code == 0
    values = json.loads(file.read_text())
    for layer in values["layers"].values():
        layer["rank"] = min(layer["shape"])
    file.write_text(json.dumps(values))
    done = compress("-o", "out", "--plan", file)
    assert done.code == 0, done.err
    difference = (logits(tmp_path / "out") - logits(shelf / "model")).abs().max()
    assert difference <= FULL_RANK_ABSOLUTE


@pytest.mark.slow
def test_the_curve_is_drawn_where_it_is_asked_for(plan, tmp_path):
    """Beside the plan, by name, or not at all; never over another's file."""
    assert plan().code == 0
    assert list(tmp_path.iterdir()) == []
    for _ in range(2):
        assert plan("-o", "mine.yaml").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.svg", "mine.yaml"]
    (tmp_path / "mine.svg").write_text("<svg aria-label='another model: obd'/>")
    done = plan("-o", "mine.yaml")
    assert done.code == 0
    assert "mine.svg is no curve of" in done.err
    assert "another model" in (tmp_path / "mine.svg").read_text()


def test_plan_for_a_target_loss(plan):
    sizes = []
    for target in ("1e-3", "1e-5"):
        done = plan("--target-loss", target, "--json")
        assert done.code == 0, done.err
        made = json.loads(done.out)["plan"]
        assert made["predicted_loss"] <= float(target)
        sizes.append(made["kept"])
    assert sizes[0] <= sizes[1]
