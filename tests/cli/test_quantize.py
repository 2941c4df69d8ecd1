"""`spectrim quantize` as other people's scripts call it."""

from __future__ import annotations

import json

import pytest

from spectrim.checkpoint import load
from spectrim.pipeline.presets import load_recipe
from tests.cli.conftest import SMALL


@pytest.fixture
def quantize(cli, shelf):
    def call(*arguments):
        data = ("--data", shelf / "text.txt")
        return cli("quantize", shelf / "model", *data, *SMALL, *arguments)

    return call


def test_what_is_printed_is_what_is_stored(quantize, tmp_path):
    options = (
        "--quantizer",
        "rtn",
        "--bits",
        3,
        "--group-size",
        16,
        "--quantizer-option",
        "scheme=symmetric",
    )
    done = quantize("-o", "out", *options, "--rank", 2, "--method", "eora", "--json")
    assert done.code == 0, done.err
    printed = json.loads(done.out)
    model, tokenizer = load(tmp_path / "out")
    assert tokenizer is not None
    config = model.config.quantization_config
    entry = next(iter(config.layers.values()))
    assert entry["options"] == {"bits": 3, "group": 16, "scheme": "symmetric"}
    assert printed["ranks"] == {name: e["rank"] for name, e in config.layers.items()}
    state = model.state_dict()
    held = {"base": 0, "path": 0}
    for name, tensor in state.items():
        part = "base" if ".base." in name else "path"
        if any(name.startswith(layer + ".") for layer in config.layers):
            held[part] += tensor.numel() * tensor.element_size()
    assert held == {"base": printed["base_bytes"], "path": printed["path_bytes"]}
    recipe = load_recipe(str(tmp_path / "out" / "spectrim_recipe.yaml"))
    assert recipe.correction.rank == 2
    assert "eora" in (tmp_path / "out" / "README.md").read_text()


def test_the_table_and_a_stored_recipe(quantize, cli, shelf, tmp_path):
    done = quantize("-o", "out", "--rank", 1)
    assert done.code == 0, done.err
    assert "│ corrections " in done.out
    again = cli("quantize", shelf / "model", "-o", "b", "--recipe", "out/spectrim_recipe.yaml")
    assert again.code == 0, again.err
    tensors = [(tmp_path / n / "model.safetensors").read_bytes() for n in ("out", "b")]
    assert tensors[0] == tensors[1]


@pytest.mark.few(1)
@pytest.mark.parametrize("rank", [0, 1])
def test_error_feedback_loses_less_and_is_stored_as_rtn(quantize, tmp_path, rank):
    losses = {}
    for name in ("rtn", "gptq"):
        options = ("--quantizer", name, "--bits", 3, "--rank", rank)
        done = quantize("-o", name, *options, "--json")
        assert done.code == 0, done.err
        losses[name] = json.loads(done.out).get("predicted_loss")
    assert rank == 0 or losses["gptq"] < losses["rtn"]
    kept = {name: load(tmp_path / name)[0].state_dict() for name in losses}
    shapes = [
        {n: (t.shape, t.dtype) for n, t in state.items() if ".base." in n}
        for state in kept.values()
    ]
    assert shapes[0] == shapes[1]
    codes = [n for n in kept["gptq"] if n.endswith("base.codes")]
    assert codes
    assert any(not kept["gptq"][n].equal(kept["rtn"][n]) for n in codes)


@pytest.mark.slow
def test_bits_by_layer_under_a_budget(quantize, cli, shelf, tmp_path):
    options = ("--bits", "2..4", "--budget-bits", 3.7, "--quantizer-option", "rounds=0")
    done = quantize("-o", "out", *options, "--quantizer-option", "density=[0.0]", "--json")
    assert done.code == 0, done.err
    printed = json.loads(done.out)
    config = load(tmp_path / "out")[0].config.quantization_config
    entries = {name: entry["options"] for name, entry in config.layers.items()}
    assert printed["options"] == entries
    assert printed["base"] == "mixed"
    assert printed["bits_per_weight"] <= 3.7
    assert {each["bits"] for each in entries.values()} <= {2, 3, 4}
    assert {each["density"] for each in entries.values()} == {0.0}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "chosen by predicted loss" in card
    again = cli("quantize", shelf / "model", "-o", "b", "--recipe", "out/spectrim_recipe.yaml")
    assert again.code == 0, again.err
    assert "bits per weight" in again.out
    tensors = [(tmp_path / n / "model.safetensors").read_bytes() for n in ("out", "b")]
    assert tensors[0] == tensors[1]


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("--bits", 99), "bits from 2 to 8"),
        (("--quantizer", "no_such"), "available"),
        (("--rank", 2, "--correction-bytes", 9), "choose one"),
        (("--rank", -1), "rank"),
        (("--budget", 0.5), "--budget"),
        (("--method", "afm"), "a method without metrics cannot be combined"),
        (("--quantizer-option", "scheme"), "name=value"),
        (("--bits", "2..x"), "a range such as"),
        (("--bits", "2..4"), "--budget-bits"),
        (("--bits", "2,7", "--budget-bits", 3), "not 7"),
        (("--budget-bits", 3, "--rank", 2), "--quantizer mixed"),
        (("--quantizer", "gptq", "--bits", "2..4", "--budget-bits", 1), "at the cheapest"),
        (("--quantizer", "sparse_2_4", "--bits", 4), "no option"),
    ],
    ids=str,
)
def test_errors_are_one_line(quantize, tmp_path, arguments, what):
    assert what in quantize("-o", "out", *arguments).failed_with_one_line()
    assert not (tmp_path / "out").exists()
