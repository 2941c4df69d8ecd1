"""The estimate of a run's stages: exact in what it counts, measured in its rates."""

from __future__ import annotations

import json

import pytest

from spectrim.pipeline import cost
from spectrim.pipeline.cost import MachineSpeed, estimate_stages, measure_speed
from spectrim.pipeline.inputs import calibration_blocks, prepare
from spectrim.pipeline.presets import load_recipe
from spectrim.pipeline.recipe import CalibrationRecipe, Recipe, RefinementRecipe
from tests.runs import text_file
from tests.tiny_models import tiny_llama, tiny_tokenizer


@pytest.fixture
def recipe(tmp_path) -> Recipe:
    text = text_file(tmp_path / "text.txt")
    given = CalibrationRecipe(data=str(text), sequences=8, length=16, tokens_per_batch=32)
    return Recipe(calibration=given, budget=0.8)


def stages(recipe: Recipe, speed: MachineSpeed, monkeypatch) -> dict[str, float]:
    monkeypatch.setattr(cost, "measure_speed", lambda *given: speed)
    found = estimate_stages(tiny_llama(), tiny_tokenizer(), recipe)
    return {stage.name: stage.seconds for stage in found}


def test_a_pass_is_its_batches_and_its_tokens(recipe, monkeypatch):
    found = stages(recipe, MachineSpeed(10.0, 1.0, 0.0, 0.0), monkeypatch)
    assert found == {"calibrating": 4 * 10 + 128, "decomposing": 0.0, "measuring curves": 0.0}


def test_a_small_budget_adds_a_pass_along_the_path(recipe, monkeypatch):
    speed = MachineSpeed(0.0, 1.0, 0.0, 1.0)
    once = stages(recipe, speed, monkeypatch)
    twice = stages(recipe.with_changes(budget=0.5), speed, monkeypatch)
    assert list(twice)[:3] == ["calibrating", "averaging the Hessian", "decomposing"]
    wide, other, head = 3 * 32 * 64, 4 * 32 * 32, 128 * 32
    products = 2 * 2 * wide / (4 * (2 * (wide + other) + head))
    expected = 0.25 * (1 + products) * once["calibrating"]
    assert twice["averaging the Hessian"] == pytest.approx(expected)
    assert twice["decomposing"] == 2 * once["decomposing"]


def test_measuring_stays_within_its_share_of_the_passes(recipe, monkeypatch):
    with_products = stages(recipe, MachineSpeed(0.0, 2.0, 1.0, 0.0), monkeypatch)
    monkeypatch.setattr(cost, "RANK_SHARE", 0.0)
    found = stages(recipe, MachineSpeed(0.0, 2.0, 1.0, 0.0), monkeypatch)
    assert with_products["measuring curves"] > found["measuring curves"]
    assert 0 < found["measuring curves"] <= 0.5 * found["calibrating"]
    fast = load_recipe("fast").with_changes(calibration=recipe.calibration)
    assert "measuring curves" not in stages(fast, MachineSpeed(0, 1, 1, 0), monkeypatch)


def test_refinements_count_the_tokens_that_they_train_on(recipe, monkeypatch):
    trained = RefinementRecipe("distillation", {"tokens": 1000})
    asked = recipe.with_changes(refinement=[trained])
    found = stages(asked, MachineSpeed(0.0, 0.0, 1.0, 0.0), monkeypatch)
    assert found["distillation"] == 4 * 1000


def test_rates_are_of_this_machine(recipe):
    model = tiny_llama()
    targets = prepare(model, recipe).targets
    blocks = calibration_blocks(model, tiny_tokenizer(), recipe)
    speed = measure_speed(model, targets, blocks, recipe)
    assert speed.batch >= 0
    assert min(speed.token, speed.forward, speed.eigh) > 0


def test_two_steps_give_the_cost_of_a_batch_and_of_a_token():
    assert cost._line([(32, 1.64), (64, 2.28)]) == pytest.approx((1.0, 0.02))
    assert cost._line([(32, 3.0), (64, 2.0)]) == (0.0, 2.0 / 64)


def test_rows_share_what_is_the_same(recipe, monkeypatch):
    monkeypatch.setattr(cost, "measure_speed", lambda *given: MachineSpeed(0, 1.0, 1.0, 1.0))
    model, tokenizer = tiny_llama(), tiny_tokenizer()

    def seconds(*rows: Recipe) -> dict[str, float]:
        found = cost.estimate_rows(model, tokenizer, rows, 100)
        return {stage.name: stage.seconds for stage in found}

    smaller = recipe.with_changes(budget=0.9)
    other = recipe.with_changes(method="svd_llm")
    one, budgets, methods = seconds(recipe), seconds(recipe, smaller), seconds(recipe, other)
    assert one["evaluating"] == 200
    assert budgets == one | {"evaluating": 300}
    assert methods["calibrating"] == one["calibrating"]
    assert methods["decomposing"] == 2 * one["decomposing"]


def test_pruned_singular_vectors_need_no_pass(tmp_path):
    path = tmp_path / "task.jsonl"
    lines = [{"prompt": f"{n} and {n}", "answer": f" is {2 * n}"} for n in range(8)]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    bsi = load_recipe("bsi").with_changes(task={"data": str(path)})
    found = estimate_stages(tiny_llama(), tiny_tokenizer(), bsi)
    assert [stage.name for stage in found] == ["decomposing", "finetune"]
