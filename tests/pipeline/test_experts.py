"""Models with fewer experts: from text to a checkpoint, and back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import spectrim
from spectrim.checkpoint import export_dense, export_self_contained, load
from spectrim.errors import CheckpointError, InputError, ModelError
from spectrim.models.experts import SplitExperts
from spectrim.pipeline.budgets import ExpertRecipe
from spectrim.pipeline.compress import CompressionResult, compress
from spectrim.pipeline.experts import check_experts
from spectrim.pipeline.inputs import calibration_blocks
from spectrim.pipeline.inspect import removed_experts
from spectrim.pipeline.recipe import SharingRecipe
from spectrim.pipeline.replace import replace_layers
from spectrim.planning import make_plan
from spectrim.planning.measured import JOINT_BUDGETS
from spectrim.planning.probe import Probe
from spectrim.report.card import card_for
from spectrim.report.collect import plan_facts
from spectrim.runtime.cache import Cache
from spectrim.runtime.context import RunContext
from tests.routed_models import ROUTED
from tests.runs import small_recipe, text_file
from tests.tiny_models import tiny_llama, tiny_moe, tiny_tokenizer, tiny_tokens
from tests.tolerances import DENSE_EXPORT_ABSOLUTE

KINDS = ["mixtral", "qwen2_moe", "deepseek_v3"]
ALONE = ExpertRecipe(uniform=True, cut_ranks=False)


def compressed(name: str, text: Path, **changes) -> CompressionResult:
    changes = {"experts": ExpertRecipe(), "budget": 0.4} | changes
    return compress(ROUTED[name](), tiny_tokenizer(), small_recipe(text, **changes))


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    return text_file(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="module")
def mixed(text) -> dict[str, CompressionResult]:
    return {name: compressed(name, text) for name in KINDS}


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_a_checkpoint_without_experts_loads_bit_by_bit(mixed, name, tmp_path):
    result = mixed[name]
    assert result.plan.experts
    assert result.plan.ranks
    spectrim.save(result.model, tiny_tokenizer(), tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = tiny_tokens(2, 20)
    assert torch.equal(again(ids).logits, result.model(ids).logits)
    held = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    for block, entry in held["removed_experts"].items():
        assert entry["removed"] == list(result.plan.experts[block].removed)
        assert again.get_submodule(block).removed == entry["removed"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert all(f"| `{block}` |" in card for block in result.plan.experts)
    assert removed_experts(again).keys() == result.plan.experts.keys()


@pytest.mark.slow
def test_experts_bases_and_ranks_in_one_plan(text, tmp_path):
    sharing = SharingRecipe("affinity", (r"experts\.up",), max_error=10.0, accept="all")
    result = compressed("mixtral", text, sharing=sharing, budget=0.35, layer="lowrank")
    groups = [layer for layer in result.plan.layers.values() if layer.members]
    assert result.plan.experts
    assert groups
    spectrim.save(result.model, tiny_tokenizer(), tmp_path / "out")
    again, _ = load(tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(again(tiny_tokens()).logits, result.model(tiny_tokens()).logits)


@pytest.mark.slow
@torch.no_grad()
def test_a_second_round_trip_and_a_copy_with_its_own_code(mixed, tmp_path):
    model = mixed["mixtral"].model
    spectrim.save(model, tiny_tokenizer(), tmp_path / "one")
    once, tokenizer = load(tmp_path / "one")
    spectrim.save(once, tokenizer, tmp_path / "two")
    twice, _ = load(tmp_path / "two")
    assert torch.equal(twice(tiny_tokens()).logits, model(tiny_tokens()).logits)
    export_self_contained(tmp_path / "one", tmp_path / "own")
    code = (tmp_path / "own" / "modeling_spectrim.py").read_text()
    assert "def remove_experts" in code
    own = AutoModelForCausalLM.from_pretrained(tmp_path / "own", trust_remote_code=True)
    assert torch.equal(own(tiny_tokens()).logits, model(tiny_tokens()).logits)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_equal_numbers_export_to_the_original_architecture(text, name, tmp_path):
    result = compressed(name, text, experts=ALONE, budget=0.8, include=("experts",))
    assert not result.plan.ranks
    assert result.plan.kept <= 0.8
    spectrim.save(result.model, tiny_tokenizer(), tmp_path / "out")
    export_dense(tmp_path / "out", tmp_path / "dense")
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    assert "quantization_config" not in dense.config.to_dict()
    assert not any(isinstance(module, SplitExperts) for module in dense.modules())
    ids = tiny_tokens(2, 20)
    with torch.no_grad():
        difference = (dense(ids).logits - result.model(ids).logits).abs().max()
    assert float(difference) <= DENSE_EXPORT_ABSOLUTE


@pytest.mark.slow
def test_unequal_numbers_have_no_place_in_the_original_config(text, tmp_path):
    alone = replace(ALONE, uniform=False)
    result = compressed("mixtral", text, experts=alone, budget=0.88, include=("experts",))
    assert [len(block.removed) for block in result.plan.experts.values()] == [1]
    spectrim.save(result.model, tiny_tokenizer(), tmp_path / "out")
    with pytest.raises(ModelError, match="one number for all"):
        export_dense(tmp_path / "out", tmp_path / "dense")


@pytest.mark.slow
def test_a_plan_is_followed_edited_and_checked(mixed, text):
    result = mixed["mixtral"]
    block, first = next(iter(result.plan.experts.items()))
    decomposition = result.decomposition
    assert decomposition is not None
    original = ROUTED["mixtral"]()
    check_experts(original, tiny_tokenizer(), result.recipe, RunContext(Cache(None)))
    again = replace_layers(original, decomposition, result.plan)
    assert again.get_submodule(block).removed == list(first.removed)
    gone = f"{block}.up.{first.removed[0]}"
    layers = result.plan.layers | {gone: next(iter(result.plan.layers.values()))}
    layers[gone] = replace(layers[gone], shape=decomposition.shapes[gone], rank=None)
    with pytest.raises(CheckpointError, match="of an expert that it removes"):
        replace_layers(original, decomposition, replace(result.plan, layers=layers))


@pytest.mark.slow
def test_whole_plans_are_measured_with_their_removed_experts(mixed):
    held = mixed["mixtral"].decomposition
    settings = mixed["mixtral"].recipe.planning
    plan = make_plan(held, settings.for_probing(min(JOINT_BUDGETS)))
    assert plan.experts
    assert plan.summed_loss in dict(held.correction.pairs)


@pytest.mark.slow
def test_card_and_facts_name_the_experts(mixed):
    result = mixed["deepseek_v3"]
    facts = plan_facts("tiny", result.plan, result.recipe)
    assert facts.experts == {n: list(e.removed) for n, e in result.plan.experts.items()}
    assert facts.dense_weights == result.decomposition.weights
    assert "## Experts" in card_for("tiny", result.plan, result.recipe)


@pytest.mark.slow
def test_a_probe_measures_a_removal(mixed, text):
    model = ROUTED["mixtral"]()
    recipe = mixed["mixtral"].recipe
    routings = check_experts(model, tiny_tokenizer(), recipe, RunContext(Cache(None)))
    assert len(routings) == 2
    probe = Probe(model, calibration_blocks(model, tiny_tokenizer(), recipe), 96)
    removals = mixed["mixtral"].plan.removals
    assert probe.divergence({}, {}, removals) > probe.divergence({}, {}, removals[:0]) - 1e-9
    assert probe.divergence({}, {}, removals) > 0


def test_models_without_experts_are_refused(text):
    recipe = small_recipe(text, experts=ExpertRecipe())
    with pytest.raises(ModelError, match="no experts that can be removed"):
        compress(tiny_llama(), tiny_tokenizer(), recipe)


def test_experts_outside_the_targets_stay(text):
    recipe = small_recipe(text, experts=ExpertRecipe(), exclude=(r"experts\.up\.3",))
    with pytest.raises(ModelError, match="no experts that can be removed"):
        compress(tiny_moe(), tiny_tokenizer(), recipe)


@pytest.mark.parametrize(
    "change",
    [
        {"experts": {"order": "nothing"}},
        {"experts": {"order": "reap", "order_options": {"a": 1}}},
    ],
    ids=["name", "option"],
)
def test_unknown_orders_and_options_are_refused(change):
    with pytest.raises(InputError):
        small_recipe(Path("x"), experts=ExpertRecipe(**change["experts"]))
