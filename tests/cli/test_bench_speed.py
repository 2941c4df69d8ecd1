"""`spectrim bench-speed` on a saved model and on a shape."""

from __future__ import annotations

import json

import pytest

SMALL = ("--batches", "1", "--lengths", "8", "--rounds", "2", "--steps", "2")


@pytest.fixture(scope="module")
def shape(tmp_path_factory):
    place = tmp_path_factory.mktemp("shape") / "config.json"
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "vocab_size": 64}
    place.write_text(json.dumps({"model_type": "llama"} | sizes | heads))
    return place


@pytest.mark.slow
def test_a_compressed_model_beside_its_original(cli, compress, shelf, tmp_path):
    assert compress("-o", tmp_path / "small", "--budget", "0.6").code == 0
    done = cli(
        "bench-speed", tmp_path / "small", "--original", shelf / "model", *SMALL,
        "-o", tmp_path / "speed", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    values = json.loads(done.out)
    assert values == json.loads((tmp_path / "speed" / "speed.json").read_text())
    assert [row["model"] for row in values["rows"]] == ["dense", "compressed", "fused"] * 2
    assert "| decode | 1 | 8 | fused |" in (tmp_path / "speed" / "speed.md").read_text()


@pytest.mark.slow
def test_a_shape_with_random_weights(cli, shape):
    given = ("--layer", "pivoted", "--blocks", "2", "--tiles")
    done = cli("bench-speed", "--shape", shape, *given, *SMALL)
    assert done.code == 0, done.err
    assert "fused" in done.out
    assert "tiles" in done.out
    assert "2 blocks" in done.out
    assert "GB/s" in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give a MODEL to load, or a --shape"),
        (("--shape", "gpt-9"), "unknown shape 'gpt-9'; available: a config.json, bert-base"),
        (("--shape", "SHAPE", "--batches", "one"), "--batches one: expected whole numbers"),
        (("--shape", "SHAPE", "--blocks", "0"), "0 blocks: at least 1"),
        (("--shape", "SHAPE", "--rounds", "0"), "rounds 0 must be at least 1"),
        (("--shape", "SHAPE", "--dtype", "int8"), "--dtype int8: expected one of float32"),
        (("--shape", "SHAPE", "--device", "abacus"), "--device abacus: no such device"),
        (("--shape", "SHAPE", "--keep", "1.5"), "budget 1.5 is out of range"),
        (("reference", "--original", "reference"), "has no factored layer to compare"),
    ],
)
def test_a_wrong_option_is_one_line(cli, shape, arguments, message):
    given = [shape if argument == "SHAPE" else argument for argument in arguments]
    assert message in cli("bench-speed", *given).failed_with_one_line()


@pytest.mark.slow
def test_a_budget_of_time_is_planned_and_followed(cli, shelf, plan, compress, tmp_path):
    given = ("--layer", "lowrank", "--rank-multiple", "auto", "--cache", tmp_path / "times")
    monkey = ("--latency-budget", "1.0")
    done = plan("-o", tmp_path / "plan.yaml", "--json", *given, *monkey)
    assert done.code == 0, done.err
    latency = json.loads(done.out)["plan"]["provenance"]["latency"]
    assert latency["budget"] == 1.0
    assert latency["predicted"] <= 1.0
    done = compress("-o", tmp_path / "small", *given, *monkey)
    assert done.code == 0, done.err


def test_time_and_loss_are_not_both_a_budget(plan):
    done = plan("--latency-budget", "0.9", "--target-loss", "0.1")
    assert "latency and --target-loss cannot be combined" in done.failed_with_one_line()
