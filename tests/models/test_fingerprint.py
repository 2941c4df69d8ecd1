"""A fingerprint changes with everything a forward pass depends on, and only then."""

from __future__ import annotations

import copy
import sys
import types

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from spectrim.models import fingerprint
from spectrim.models.fingerprint import files_fingerprint, model_fingerprint
from tests.tiny_models import TINY_MODELS, tiny_llama


def test_the_same_model_twice():
    assert model_fingerprint(tiny_llama()) == model_fingerprint(tiny_llama())
    assert model_fingerprint(tiny_llama()) != model_fingerprint(tiny_llama(seed=1))


@pytest.mark.parametrize("name", TINY_MODELS)
def test_loaded_from_another_place_it_is_the_same(tmp_path, name):
    found = set()
    for place in ("here", "there"):
        TINY_MODELS[name]().save_pretrained(tmp_path / place)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / place).eval()
        found.add(model_fingerprint(model))
        with torch.no_grad():
            model(torch.ones(1, 5, dtype=torch.long))
        found.add(model_fingerprint(model))
        found.add(model_fingerprint(copy.deepcopy(model).train()))
    assert len(found) == 1


def test_every_value_counts():
    weight = torch.zeros(1024, 1024)
    model = nn.Linear(1024, 1024, bias=False)
    found = set()
    for place in (None, (0, 0), (0, 1), (1023, 1023), (512, 77)):
        model.weight.data = weight.clone()
        if place is not None:
            model.weight.data[place] = 1e-9
        found.add(model_fingerprint(model))
    assert len(found) == 5


def test_dtype_shape_and_names_count():
    one = nn.Linear(4, 6, bias=False)
    found = {model_fingerprint(one), model_fingerprint(copy.deepcopy(one).double())}
    other = nn.Linear(6, 4, bias=False)
    other.weight.data = one.weight.data.reshape(4, 6)
    found |= {model_fingerprint(other), model_fingerprint(nn.Sequential(one))}
    assert len(found) == 4


def test_buffers_of_checkpoints_count_and_others_do_not():
    def model(kept: float, made: float) -> nn.Module:
        module = nn.Module()
        module.register_buffer("kept", torch.tensor([kept]))
        module.register_buffer("made", torch.tensor([made]), persistent=False)
        return module

    assert model_fingerprint(model(1, 1)) == model_fingerprint(model(1, 2))
    assert model_fingerprint(model(1, 1)) != model_fingerprint(model(2, 1))


def test_all_of_the_configuration_counts_but_names():
    def changed(**values) -> str:
        model = tiny_llama()
        for name, value in values.items():
            setattr(model.config, name, value)
        return model_fingerprint(model)

    assert changed() == changed(_name_or_path="elsewhere") == changed(architectures=["other"])
    same = changed()
    for change in ({"hidden_act": "relu"}, {"rms_norm_eps": 1e-3}, {"rope_theta": 7.0}):
        assert changed(**change) != same, change


def test_transformers_version_and_settings_of_modules_count(monkeypatch):
    before = model_fingerprint(tiny_llama())
    monkeypatch.setattr(fingerprint.transformers, "__version__", "0")
    assert model_fingerprint(tiny_llama()) != before
    assert model_fingerprint(nn.LayerNorm(4)) != model_fingerprint(nn.LayerNorm(4, eps=1e-3))
    assert model_fingerprint(nn.ReLU()) != model_fingerprint(nn.SiLU())


def test_code_of_a_checkpoint_counts_with_all_its_files(tmp_path, monkeypatch):
    def make(text: str, helper: str) -> str:
        for name, content in (("modeling", text), ("helper", helper)):
            file = tmp_path / f"{name}.py"
            file.write_text(content)
            module = types.ModuleType(f"transformers_modules.some.{name}")
            module.__file__ = str(file)
            monkeypatch.setitem(sys.modules, module.__name__, module)
        cls = type("Remote", (nn.Module,), {"__module__": "transformers_modules.some.modeling"})
        return model_fingerprint(cls())

    assert make("a", "b") == make("a", "b")
    assert len({make("a", "b"), make("a2", "b"), make("a", "b2")}) == 3


def test_files_count_whole(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(bytes(3_000_000))
    before = files_fingerprint([path])
    for place in (0, 1_234_567, 2_999_999):
        data = bytearray(3_000_000)
        data[place] = 1
        path.write_bytes(data)
        assert files_fingerprint([path]) != before
    path.write_bytes(bytes(3_000_000))
    assert files_fingerprint([path]) == before
