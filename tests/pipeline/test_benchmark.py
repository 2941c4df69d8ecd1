"""A table of recipes: equal bytes, one calibration, rows that are kept and made once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import spectrim
from spectrim.calibration import in_memory
from spectrim.data import BlockSettings
from spectrim.errors import InputError, ModelError
from spectrim.evaluation import size
from spectrim.pipeline.benchmark import Bench, BenchRow, BenchSettings, bench, bench_steps
from spectrim.pipeline.benchmark import run as run_module
from spectrim.pipeline.benchmark.equal_bytes import allowance, fit_to_budget
from spectrim.pipeline.benchmark.profile import FactorizeTimer, PeakMemory, StageTimer
from spectrim.pipeline.evaluate import evaluate
from spectrim.pipeline.loaded_model import LoadedModel
from spectrim.pipeline.plan import factorize, plan
from spectrim.pipeline.recipe import HessianAveragingRecipe, LatencyRecipe, ProbeRecipe, Recipe
from spectrim.pipeline.replace import replace_layers
from spectrim.runtime.cache import Cache
from spectrim.runtime.context import silent
from spectrim.runtime.files import read_values
from tests.runs import Forwards, small_recipe, text_file
from tests.tiny_models import TINY_MODELS, tiny_llama, tiny_qwen2_bias, tiny_tokenizer
from tests.tolerances import FLOAT32_RELATIVE

BUDGETS = (0.7, 0.5)
PLAIN = {
    "hessian_averaging": HessianAveragingRecipe(weight=0),
    "probe": ProbeRecipe(per_layer=False, joint=False),
}
MEBIBYTE = 2**20


@pytest.fixture
def text(tmp_path):
    return text_file(tmp_path / "text.txt")


@pytest.fixture
def recipes(text) -> dict[str, Recipe]:
    svd = small_recipe(text, method="svd", allocation="uniform", layer="lowrank", **PLAIN)
    asvd = small_recipe(text, method="asvd", allocation="uniform", layer="lowrank", **PLAIN)
    return {"svd": svd, "asvd": asvd, "obd": small_recipe(text, rank_multiple=1, **PLAIN)}


@pytest.fixture
def settings(tmp_path, text) -> BenchSettings:
    other = text_file(tmp_path / "other.txt", seed=1)
    return BenchSettings(
        texts=(str(text), str(other)),
        blocks=BlockSettings(length=24, max_tokens=200, keep_tail=True),
        rows=tmp_path / "rows",
        cache=Cache(tmp_path / "kept"),
    )


@pytest.fixture
def batches(monkeypatch) -> list[int]:
    """One entry for every batch of a calibration; a pass over eight sequences has two."""
    seen: list[int] = []
    original = in_memory.run_batch

    def run(*arguments):
        seen.append(arguments[2].first_sequence)
        original(*arguments)

    monkeypatch.setattr(in_memory, "run_batch", run)
    return seen


def made(recipes, settings, budgets=BUDGETS, model=None) -> Bench:
    return bench(model or tiny_llama(), tiny_tokenizer(), recipes, budgets, settings)


@pytest.mark.slow
def test_rows_are_those_of_separate_runs(recipes, settings, batches):
    found = made(recipes, settings)
    assert len(batches) == 2
    assert [(row.name, row.budget) for row in found.rows] == [
        (name, budget) for name in recipes for budget in BUDGETS
    ]
    assert (found.wanted, found.made) == (6, 6)
    model, tokenizer, text = tiny_llama(), tiny_tokenizer(), settings.texts[0]
    dense = evaluate(model, tokenizer, text, settings.blocks)
    assert found.dense.perplexity[text] == pytest.approx(dense["perplexity"])
    for row in found.rows[:4]:
        recipe = recipes[row.name].with_changes(budget=row.budget)
        decomposition = factorize(model, tokenizer, recipe)
        chosen = plan(decomposition, recipe)
        smaller = replace_layers(model, decomposition, chosen)
        alone = evaluate(smaller, tokenizer, text, settings.blocks, model)
        close = {"rel": FLOAT32_RELATIVE, "abs": FLOAT32_RELATIVE}
        assert row.perplexity[text] == pytest.approx(alone["perplexity"], **close)
        assert row.kl_divergence == pytest.approx(alone["kl_divergence"], **close)
        increase = alone["loss"] - dense["loss"]
        assert row.loss_increase[text] == pytest.approx(increase, **close)
        assert row.predicted_loss == chosen.predicted_loss
        assert row.kept == pytest.approx(chosen.kept)
        assert set(row.perplexity) == set(settings.texts)


def test_rows_of_one_budget_have_equal_bytes_at_most(recipes, settings):
    """Measured in the saved file; the indices of pivoted layers are within the budget too."""
    found = made(recipes, settings)
    for budget in BUDGETS:
        rows = [row for row in found.rows if row.budget == budget]
        [allowed] = {row.allowed_bytes for row in rows}
        for row in rows:
            assert not row.exceeds
            assert 0.9 * allowed < row.layer_bytes <= allowed
            assert row.kept <= budget
            others = found.dense.file_bytes - allowed / budget
            assert row.file_bytes == pytest.approx(others + row.layer_bytes, rel=0.1)


@pytest.mark.few(2)
@pytest.mark.parametrize("name", ["llama", "qwen2_bias", "moe"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fitted_model_is_the_largest_that_fits(text, tmp_path, name, dtype):
    model = TINY_MODELS[name]()
    recipe = small_recipe(text, rank_multiple=1, **PLAIN)
    decomposition = factorize(model, tiny_tokenizer(), recipe)
    original = LoadedModel(model, tiny_tokenizer(), dtype)
    result = fit_to_budget(original, decomposition, recipe)
    chosen, smaller = result.plan, result.model
    allowed = allowance(model, chosen, recipe.budget, dtype)
    spectrim.save(smaller.to(dtype), None, str(tmp_path / "out"))
    below = tuple(f"{module}." for module in chosen.modules)
    sizes = size.tensor_bytes(tmp_path / "out")
    stored = sum(bytes_ for tensor, bytes_ in sizes.items() if tensor.startswith(below))
    assert 0.95 * allowed.bytes < stored <= allowed.bytes
    assert sum(sizes.values()) <= size.disk_bytes(tmp_path / "out")
    weights_alone = replace_layers(model, decomposition, plan(decomposition, recipe)).to(dtype)
    spectrim.save(weights_alone, None, str(tmp_path / "unfitted"))
    unfitted = size.tensor_bytes(tmp_path / "unfitted")
    more = sum(bytes_ for tensor, bytes_ in unfitted.items() if tensor.startswith(below))
    assert more > allowed.bytes


def test_biases_are_allowed_for(text):
    model = tiny_qwen2_bias()
    recipe = small_recipe(text, **PLAIN)
    decomposition = factorize(model, tiny_tokenizer(), recipe)
    allowed = allowance(model, plan(decomposition, recipe), 0.5, torch.bfloat16)
    assert allowed.dense == 2 * decomposition.weights
    assert allowed.biases == 2 * 2 * (32 + 16 + 16)
    assert allowed.bytes == decomposition.weights + allowed.biases
    assert allowed.kept(allowed.bytes) == pytest.approx(0.5)


@pytest.mark.slow
def test_finished_rows_are_not_made_again(recipes, settings, batches, monkeypatch):
    first = made(recipes, settings, (0.7,))
    batches.clear()
    model = tiny_llama()
    with Forwards(model) as forwards:
        again = made(recipes, settings, (0.7,), model)
    assert (again.rows, again.made, forwards.count) == (first.rows, 0, 0)
    more = made(recipes, settings)
    assert batches == []
    assert (more.made, len(more.rows)) == (3, 6)
    assert [row for row in more.rows if row.budget == 0.7] == list(first.rows)
    assert all("decompose" not in row.seconds for row in more.rows if row.budget == 0.5)


@pytest.mark.slow
def test_a_method_more_gathers_only_what_it_needs_more(recipes, settings, batches):
    made({"svd": recipes["svd"]}, settings)
    batches.clear()
    found = made(recipes, settings)
    assert len(batches) == 2
    assert found.made == 4


@pytest.mark.few(1)
@pytest.mark.parametrize("other", ["model", "text", "tokens", "recipe", "dtype"])
def test_rows_of_something_else_are_made(recipes, settings, tmp_path, other):
    given = {"svd": recipes["svd"]}
    made(given, settings, (0.7,))
    model, changed = tiny_llama(), vars(settings).copy()
    if other == "model":
        model = tiny_llama(seed=1)
    elif other == "text":
        text_file(Path(settings.texts[1]), seed=2)
    elif other == "tokens":
        text_file(Path(settings.texts[0]), seed=2)
    elif other == "recipe":
        given = {"svd": recipes["svd"].with_changes(rank_multiple=4)}
    else:
        changed["dtype"] = torch.bfloat16
    assert made(given, BenchSettings(**changed), (0.7,), model).made == 1


@pytest.mark.slow
def test_an_interrupted_table_keeps_its_rows(recipes, settings, monkeypatch):
    steps = bench_steps(tiny_llama(), tiny_tokenizer(), recipes, BUDGETS, settings)
    assert next(steps).rows == ()
    assert len(next(steps).rows) == 1
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "fit_to_budget", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(steps)
    assert made(recipes, settings).made == 5


def _interrupted(*arguments: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_a_damaged_row_is_made_again(recipes, settings):
    made({"svd": recipes["svd"]}, settings)
    for path in settings.rows.glob("row-*"):
        path.write_text(path.read_text()[:40])
    with pytest.warns(UserWarning, match="making the row again"):
        assert made({"svd": recipes["svd"]}, settings).made == 2


@pytest.mark.slow
def test_a_row_that_cannot_be_made_has_its_error_and_is_tried_again(recipes, settings):
    found = made(recipes, settings, (0.7, 0.01))
    wrong = [row for row in found.rows if row.error]
    assert {(row.name, row.budget) for row in wrong} == {(name, 0.01) for name in recipes}
    assert all("below the smallest possible model" in row.error for row in wrong)
    assert all(row.kept is None and not row.exceeds for row in wrong)
    assert made(recipes, settings, (0.7, 0.01)).made == len(wrong)


@pytest.mark.slow
def test_a_recipe_that_cannot_be_decomposed_leaves_the_others(recipes, settings, monkeypatch):
    original = run_module.factorize

    def fails_for_asvd(model, tokenizer, recipe, *rest):
        if recipe.method == "asvd":
            raise ModelError("not today")
        return original(model, tokenizer, recipe, *rest)

    monkeypatch.setattr(run_module, "factorize", fails_for_asvd)
    found = made(recipes, settings)
    assert [row.error for row in found.rows] == [None, None, *["not today"] * 2, None, None]


def test_the_default_recipe_and_a_refinement(text, settings):
    """Every stage is timed; the path average is a pass of the recipe's own."""
    step = {"name": "block_distillation", "options": {"epochs": 1}, "sequences": 4}
    recipe = small_recipe(text, rank_multiple=1).with_changes(refinement=(step,))
    [row] = made({"all": recipe}, settings, (0.6,)).rows
    assert row.error is None
    stages = {"calibrate", "decompose", "measure", "compress", "refine", "evaluate"}
    assert set(row.seconds) == stages
    assert all(seconds >= 0 for seconds in row.seconds.values())
    assert not row.exceeds
    assert Recipe(**row.recipe) == recipe.with_changes(budget=0.6)


def test_nothing_is_kept_without_places(recipes, settings):
    nowhere = BenchSettings(texts=settings.texts[:1], blocks=settings.blocks)
    assert [made({"svd": recipes["svd"]}, nowhere, (0.7,)).made for _ in range(2)] == [1, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budgets": (0.5, 1.5)}, "budget: Input should be less than or equal to 1, got 1.5"),
        ({"budgets": (0.5, 0.5)}, "a budget is named twice"),
        ({"budgets": ()}, "at least one recipe and one budget"),
        ({"recipes": {}}, "at least one recipe and one budget"),
        (
            {"recipes": {"timed": Recipe(latency=LatencyRecipe()), "other": Recipe()}},
            "give all recipes the same latency, or none",
        ),
    ],
)
def test_bad_input_fails_before_any_work(recipes, settings, monkeypatch, changes, message):
    monkeypatch.setattr(run_module, "factorize", lambda *a: pytest.fail("began"))
    given = {"recipes": recipes, "budgets": BUDGETS} | changes
    with pytest.raises(InputError, match=message):
        made(given["recipes"], settings, given["budgets"])


@pytest.mark.parametrize("texts", [(), ("a.txt", "a.txt"), ("none.txt",)])
def test_bad_texts_fail_before_any_work(recipes, settings, batches, texts):
    with pytest.raises(InputError):
        made(recipes, BenchSettings(**(vars(settings) | {"texts": texts})))
    assert batches == []


def test_rows_are_read_as_they_were_written(recipes, settings):
    [row] = made({"svd": recipes["svd"]}, settings, (0.7,)).rows
    [file] = settings.rows.glob("row-*")
    assert BenchRow(**read_values(file)) == row


def test_peak_memory_sees_what_was_there_for_a_moment():
    with PeakMemory() as memory:
        block = torch.ones(64 * MEBIBYTE // 4)
        _wait_for_a_sample()
        del block
    assert 60 * MEBIBYTE < memory.peak - memory.start < 200 * MEBIBYTE


def _wait_for_a_sample() -> None:
    import time

    time.sleep(0.2)


def test_the_clock_adds_up_and_the_stages_follow_the_track():
    now = iter(range(100))
    clock = StageTimer(lambda: float(next(now)))
    for _ in range(2):
        with clock("compress"):
            pass
    assert clock.seconds == {"compress": 2.0}
    factorizing = FactorizeTimer(silent, lambda: float(next(now)))
    assert list(factorizing.track([1], "calibrating", 1)) == [1]
    assert list(factorizing.track([1, 2], "decomposing", 2)) == [1, 2]
    assert factorizing.seconds() == {"calibrate": 1.0, "decompose": 1.0, "measure": 1.0}
    kept = FactorizeTimer(silent, lambda: float(next(now)))
    assert kept.seconds() == {"calibrate": 1.0}
