"""Plans and decompositions with groups, as files."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from spectrim.errors import CheckpointError, InputError
from spectrim.layers.shared_basis import SharedBasisLinear
from spectrim.pipeline.replace import replace_layers
from spectrim.planning import Decomposition, load_plan, save_plan
from tests.pipeline.basis_groups.cases import logits


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_plans_and_decompositions_round_trip(done, tmp_path, suffix):
    case = done["gqa", "adjacent"]
    save_plan(case.plan, tmp_path / f"plan.{suffix}")
    chosen = load_plan(tmp_path / f"plan.{suffix}")
    assert chosen == case.plan
    case.decomposition.save(tmp_path / "decomposition")
    again = Decomposition.load(tmp_path / "decomposition")
    assert again.groups == case.decomposition.groups
    assert torch.equal(logits(replace_layers(case.model, again, chosen)), case.logits)


def tampered(values: dict, what: str) -> None:
    layers = values["layers"]
    name = next(n for n, layer in layers.items() if "members" in layer)
    members = layers[name]["members"]
    first, second = members
    if what == "fewer rows":
        members[first] -= 1
    elif what == "no rows":
        members[first], members[second] = 0, members[first] + members[second]
    elif what == "one member":
        layers[name]["members"] = {first: sum(members.values())}
    elif what == "twice":
        layers[first] = {"shape": [members[first], layers[name]["shape"][1]]}
    elif what == "not a mapping":
        layers[name]["members"] = [first, second]


@pytest.mark.parametrize(
    "what", ["fewer rows", "no rows", "one member", "twice", "not a mapping"]
)
def test_plans_that_contradict_themselves_are_refused(done, tmp_path, what):
    values = done["gqa", "adjacent"].plan.to_dict()
    tampered(values, what)
    (tmp_path / "plan.json").write_text(json.dumps(values))
    with pytest.raises(InputError):
        load_plan(tmp_path / "plan.json")


@pytest.mark.parametrize("what", ["other order", "other member", "other split", "foreign"])
def test_plans_of_other_groups_are_refused(done, what):
    case = done["llama", "adjacent"]
    name = next(name for name in case.plan.ranks if case.plan.layers[name].members)
    layer = case.plan.layers[name]
    first, second = layer.members
    rows = layer.members[first]
    members = {
        "other order": {second: rows, first: rows},
        "other member": {first: rows, first.replace("q_proj", "o_proj"): rows},
        "other split": {first: rows - 1, second: rows + 1},
        "foreign": {first: rows, "model.layers.9.self_attn.q_proj": rows},
    }[what]
    layers = {n: p for n, p in case.plan.layers.items() if p.members or "o_proj" not in n}
    layers[name] = replace(layer, members=members)
    with pytest.raises(CheckpointError):
        replace_layers(case.model, case.decomposition, replace(case.plan, layers=layers))


def test_damaged_groups_of_a_decomposition_are_refused(done, tmp_path):
    decomposition = done["llama", "adjacent"].decomposition
    name, members = next(iter(decomposition.groups.items()))
    wrong = {name: {member: rows + 1 for member, rows in members.items()}}
    replace(decomposition, groups=wrong).save(tmp_path / "d")
    with pytest.raises(CheckpointError, match="rows"):
        Decomposition.load(tmp_path / "d")


def test_single_layers_of_the_kind_are_plain_factors(done):
    layer = SharedBasisLinear.from_factors(torch.eye(4, 2), torch.eye(2, 3), None)
    assert layer.owner is layer
    assert "another" not in repr(layer)
