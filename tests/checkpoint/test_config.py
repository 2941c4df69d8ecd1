from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from spectrim.checkpoint import SpectrimConfig
from spectrim.checkpoint.empty_layers import install_empty_layers
from spectrim.errors import CheckpointError
from tests.tiny_models import tiny_llama, tiny_moe

Q = "model.layers.0.self_attn.q_proj"
ENTRY = {"kind": "lowrank", "rank": 2}
REMOVED = {"router": "b", "removed": [0]}

BAD_CONFIGS = {
    "newer": {"version": 2},
    "version text": {"version": "1"},
    "version zero": {"version": 0},
    "other method": {"quant_method": "gptq"},
    "unknown field": {"loader": "os.system"},
    "layers list": {"layers": [Q]},
    "name number": {"layers": {1: ENTRY}},
    "name empty": {"layers": {"": ENTRY}},
    "name absolute": {"layers": {"/etc/passwd": ENTRY}},
    "name dots": {"layers": {"a..b": ENTRY}},
    "name end": {"layers": {"a.": ENTRY}},
    "name newline": {"layers": {"a\n": ENTRY}},
    "name unicode": {"layers": {"ä": ENTRY}},
    "entry number": {"layers": {Q: 3}},
    "entry extra": {"layers": {Q: {**ENTRY, "code": 1}}},
    "entry short": {"layers": {Q: {"rank": 3}}},
    "kind unknown": {"layers": {Q: {"kind": "magic", "rank": 3}}},
    "kind private": {"layers": {Q: {"kind": "_base", "rank": 3}}},
    "kind number": {"layers": {Q: {"kind": 3, "rank": 3}}},
    "rank zero": {"layers": {Q: {"kind": "lowrank", "rank": 0}}},
    "rank negative": {"layers": {Q: {"kind": "lowrank", "rank": -1}}},
    "rank real": {"layers": {Q: {"kind": "lowrank", "rank": 2.0}}},
    "rank bool": {"layers": {Q: {"kind": "lowrank", "rank": True}}},
    "rank text": {"layers": {Q: {"kind": "lowrank", "rank": "2"}}},
    "experts text": {"split_experts": "model"},
    "experts twice": {"split_experts": ["a", "a"]},
    "experts name": {"split_experts": ["../a"]},
    "removed list": {"removed_experts": [1]},
    "removed elsewhere": {"removed_experts": {"a": REMOVED}},
    "removed short": {"split_experts": ["a"], "removed_experts": {"a": {"router": "b"}}},
    "removed none": {
        "split_experts": ["a"],
        "removed_experts": {"a": REMOVED | {"removed": []}},
    },
    "removed twice": {
        "split_experts": ["a"],
        "removed_experts": {"a": REMOVED | {"removed": [1, 1]}},
    },
    "removed bool": {
        "split_experts": ["a"],
        "removed_experts": {"a": REMOVED | {"removed": [True]}},
    },
    "removed router": {
        "split_experts": ["a"],
        "removed_experts": {"a": REMOVED | {"router": ""}},
    },
    "untied text": {"untied": "yes"},
    "provenance list": {"provenance": [1]},
    "provenance nan": {"provenance": {"x": float("nan")}},
    "provenance object": {"provenance": {"x": object()}},
    "inner list": {"inner": []},
}
MISFITS = {
    "rank above": ({Q: {"kind": "lowrank", "rank": 33}}, []),
    "no such module": ({"model.layers.9.self_attn.q_proj": ENTRY}, []),
    "not linear": ({"model.embed_tokens": ENTRY}, []),
    "a block": ({"model.layers.0": ENTRY}, []),
    "an attribute": ({"model.config": ENTRY}, []),
    "inside another": ({Q: ENTRY, Q + ".right": ENTRY}, []),
    "too many": ({f"x{i}": ENTRY for i in range(100)}, []),
    "experts missing": ({}, ["model.layers.0.mlp.experts"]),
    "experts not fused": ({}, ["model.layers.0.mlp"]),
    "experts too many": ({}, [f"x{i}" for i in range(100)]),
}


@pytest.mark.parametrize("settings", BAD_CONFIGS.values(), ids=BAD_CONFIGS.keys())
def test_crafted_configs_are_refused(settings):
    with pytest.raises(CheckpointError):
        SpectrimConfig.from_dict(settings)


@pytest.mark.parametrize(("layers", "experts"), MISFITS.values(), ids=MISFITS.keys())
def test_configs_that_do_not_fit_are_refused(layers, experts):
    model = tiny_llama()
    before = [type(module) for module in model.modules()]
    with pytest.raises(CheckpointError):
        install_empty_layers(model, SpectrimConfig(layers, experts))
    assert [type(module) for module in model.modules()] == before


def test_a_crafted_config_is_refused_by_from_pretrained(tmp_path):
    model = tiny_llama()
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    text = json.loads(path.read_text())
    text["quantization_config"] = {"quant_method": "spectrim", "layers": {"/": ENTRY}}
    path.write_text(json.dumps(text))
    with pytest.raises(CheckpointError, match="not a module name"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "entry",
    [
        {"router": "model.layers.0.mlp.gone", "removed": [1]},
        {"router": "model.layers.0.input_layernorm", "removed": [1]},
        {"router": "model.layers.0.mlp.gate", "removed": [4]},
        {"router": "model.layers.0.mlp.gate", "removed": [0, 1, 2, 3]},
    ],
    ids=["no module", "no router", "no expert", "all experts"],
)
def test_removed_experts_that_do_not_fit_are_refused(entry):
    name = "model.layers.0.mlp.experts"
    config = SpectrimConfig({}, [name], removed_experts={name: entry})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_moe().config)
    with pytest.raises(CheckpointError):
        install_empty_layers(model, config)


def test_experts_are_removed_without_memory():
    name, router = "model.layers.0.mlp.experts", "model.layers.0.mlp.gate"
    entry = {"router": router, "removed": [2, 0]}
    config = SpectrimConfig({}, [name], removed_experts={name: entry})
    assert SpectrimConfig.from_dict(config.to_dict()).removed_experts == {name: entry}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_moe().config)
    install_empty_layers(model, config)
    assert model.get_submodule(name).removed == [0, 2]
    assert model.get_submodule(router).weight.shape[0] == 2


def test_experts_are_split_without_memory():
    config = SpectrimConfig({}, ["model.layers.0.mlp.experts"])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_moe().config)
    install_empty_layers(model, config)
    assert model.get_submodule("model.layers.0.mlp.experts.up.3").weight.is_meta


def test_round_trip_through_transformers_config(tmp_path):
    config = tiny_llama().config
    config.quantization_config = SpectrimConfig({Q: ENTRY}, provenance={"a": [1, None, "ü"]})
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path).quantization_config
    assert SpectrimConfig.from_dict(again).to_dict() == config.quantization_config.to_dict()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
NAMES = st.sampled_from([Q, "lm_head", "model", "model.norm", "", ".", "a..b"]) | st.text()
ENTRIES = st.fixed_dictionaries(
    {"kind": st.sampled_from(["lowrank", "pivoted"]) | JSON, "rank": st.integers(-2, 60) | JSON}
)
FIELDS = [
    "layers",
    "split_experts",
    "removed_experts",
    "untied",
    "provenance",
    "inner",
    "version",
    "other",
]


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(st.sampled_from(FIELDS), JSON),
    st.none() | st.dictionaries(NAMES, ENTRIES | JSON, max_size=3),
)
def test_any_json_is_read_or_refused_with_our_error(text, layers):
    """Nothing but CheckpointError escapes, and what is accepted fits the model."""
    if layers is not None:
        text["layers"] = layers
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIG)
    try:
        config = SpectrimConfig.from_dict(text)
        install_empty_layers(model, config)
    except CheckpointError:
        return
    for name, entry in config.layers.items():
        assert model.get_submodule(name).rank == entry["rank"]


CONFIG = tiny_llama().config
