"""A model gives the same layers from memory and from a checkpoint."""

from __future__ import annotations

import pytest
import torch

from spectrim.checkpoint.save_sharded import open_streamed
from spectrim.models.experts import fused_expert_names, split_experts
from spectrim.models.source import ResidentModel
from spectrim.models.targets import find_targets
from spectrim.planning.solver import layer_problems
from tests.tiny_models import TINY_MODELS, tiny_tokenizer, tiny_tokens


@pytest.mark.parametrize("name", ["llama", "gpt2", "moe"])
def test_layers_from_memory_and_from_files_are_the_same(name, tmp_path):
    model = TINY_MODELS[name]()
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    split_experts(model, fused_expert_names(model))
    names = [(target.name,) for target in find_targets(model)]
    streamed = open_streamed(tmp_path).streamed
    found = []
    for (problem,) in layer_problems(streamed, None, names):
        assert streamed.part_of(problem.name) in streamed.parts
        found.append((problem.name, problem.weight.clone()))
    for (problem,), (other, weight) in zip(
        layer_problems(ResidentModel(model), None, names), found, strict=True
    ):
        assert problem.name == other
        assert torch.equal(problem.weight, weight)
    assert all(p.is_meta for p in streamed.model.parameters())


def test_the_parts_hold_the_tensors_of_the_whole(tmp_path):
    whole = ResidentModel(TINY_MODELS["llama"]())
    whole.model.save_pretrained(tmp_path)
    streamed = open_streamed(tmp_path).streamed
    found = {}
    for name in streamed.parts:
        with streamed.resident(name):
            found |= streamed.state(name)
    [part] = whole.parts
    expected = whole.state(part)
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_model_on_disk_runs_as_a_whole(tmp_path):
    whole = ResidentModel(TINY_MODELS["llama"]())
    whole.model.save_pretrained(tmp_path)
    streamed, released = open_streamed(tmp_path).streamed, []
    with torch.no_grad(), streamed.running(lambda: released.append(True)):
        found = streamed.model(tiny_tokens()).logits
    with torch.no_grad(), whole.running(lambda: pytest.fail("nothing is released")):
        assert torch.equal(found, whole.model(tiny_tokens()).logits)
    assert len(released) == len(streamed.blocks) + 1
    assert all(p.is_meta for p in streamed.model.parameters())


def test_fingerprints_change_with_the_weights(tmp_path):
    model = TINY_MODELS["llama"]()

    def fingerprints(place):
        model.save_pretrained(place)
        return ResidentModel(model).fingerprint, open_streamed(place).streamed.fingerprint

    before = fingerprints(tmp_path / "a")
    assert fingerprints(tmp_path / "same") == before
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    after = fingerprints(tmp_path / "b")
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_a_part_is_released_after_an_error(tmp_path):
    TINY_MODELS["llama"]().save_pretrained(tmp_path)
    streamed = open_streamed(tmp_path).streamed
    problems = layer_problems(streamed, None, [("model.layers.0.mlp.up_proj",)])
    next(problems)
    assert not streamed.model.model.layers[0].mlp.up_proj.weight.is_meta
    problems.close()
    assert all(p.is_meta for p in streamed.model.parameters())
