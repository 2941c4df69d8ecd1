"""A model gives the same layers from memory and from a checkpoint."""

from __future__ import annotations

import pytest
import torch

from spectrim.checkpoint.save_sharded import open_streamed
from spectrim.models.experts import fused_expert_names, split_experts
from spectrim.models.source import ResidentModel
from spectrim.models.targets import find_targets
from spectrim.planning.solver import layer_problems
from tests.tiny_models import TINY_MODELS, tiny_tokenizer


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


def test_a_part_is_released_after_an_error(tmp_path):
    TINY_MODELS["llama"]().save_pretrained(tmp_path)
    streamed = open_streamed(tmp_path).streamed
    problems = layer_problems(streamed, None, [("model.layers.0.mlp.up_proj",)])
    next(problems)
    assert not streamed.model.model.layers[0].mlp.up_proj.weight.is_meta
    problems.close()
    assert all(p.is_meta for p in streamed.model.parameters())
