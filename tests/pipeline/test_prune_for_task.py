"""From a model and a task to a smaller checkpoint: all recipes, all kinds of model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import spectrim
from spectrim.data.tasks import write_task
from spectrim.errors import InputError
from spectrim.evaluation import size
from spectrim.pipeline import tasks
from spectrim.pipeline.evaluate import evaluate_task
from spectrim.pipeline.presets import PRESETS
from spectrim.pipeline.prune_for_task import prune_for_task
from spectrim.pipeline.recipe import (
    CalibrationRecipe,
    Recipe,
    RefinementRecipe,
    SharingRecipe,
    TaskRecipe,
)
from spectrim.pruning import PruningOptions
from spectrim.runtime import snapshots
from spectrim.runtime.cache import Cache
from spectrim.runtime.context import RunContext
from tests.tiny_models import TINY_MODELS, tiny_tokenizer

TASK = [(f"the number after {n} is ", str(n + 1)) for n in range(40)]
SPECIAL = ("task", "bsi", "basel")
BUDGET = 0.4


def _recipe(task: TaskRecipe, preset: str = "task", **selection: Any) -> Recipe:
    recipe = PRESETS[preset]
    assert recipe.pruning is not None
    probes = {"importance_options": {"probes": 1}} if preset == "bsi" else {}
    quick = {"steps": 6, "prune_steps": 2, "batch_size": 4, "scoring_examples": 8}
    return recipe.with_changes(
        budget=BUDGET,
        calibration=CalibrationRecipe(sequences=16),
        pruning=replace(recipe.pruning, **(quick | probes | selection)),
        task=task,
        refinement=(RefinementRecipe("finetune", {"steps": 2}),),
    )


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> TaskRecipe:
    path = tmp_path_factory.mktemp("task") / "task.jsonl"
    assert write_task(lambda: iter(TASK), path) == len(TASK)
    return TaskRecipe(data=str(path))


@pytest.mark.few(2)
@pytest.mark.parametrize("preset", SPECIAL)
@pytest.mark.parametrize("model_name", ["llama", "gqa", "gpt2", "moe", "tied", "qwen2_bias"])
def test_every_recipe_on_every_kind_of_model(task, preset, model_name, tmp_path):
    model = TINY_MODELS[model_name]().float()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    recipe = _recipe(task, preset)
    found = prune_for_task(model, tiny_tokenizer(), recipe)
    assert found.plan.kept <= BUDGET
    names = set(before) & set(model.state_dict())
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in names)
    stored = size.evaluate(found.model, None, size.Options())  # type: ignore[arg-type]
    assert stored["parameters"] < sum(tensor.numel() for tensor in before.values())
    target = tmp_path / "out"
    spectrim.save(found.model, tiny_tokenizer(), str(target))
    loaded = AutoModelForCausalLM.from_pretrained(target)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, found.model(ids).logits)


@pytest.mark.slow
def test_the_merged_model_computes_what_the_tuned_one_did(task, tmp_path):
    """Merging and refactoring change the storage, not the function."""
    model, tokenizer = TINY_MODELS["llama"]().float(), tiny_tokenizer()
    recipe = _recipe(task, "bsi", svd_cutoff=0.0)
    found = prune_for_task(model, tokenizer, recipe)
    last = found.state.prune_steps[-1]
    assert last.kept_after <= BUDGET
    ours = evaluate_task(found.model, tokenizer, recipe.task)["task_loss"]
    again = _recipe(task, "bsi", svd_cutoff=0.0, steps=0, prune_until=0.0)
    bare = prune_for_task(model, tokenizer, again)
    rows = tasks.load_task_rows(model, tokenizer, recipe.task)
    chosen = tasks.sample_rows(rows, 8, again.pruning.seed)
    from spectrim.pruning import Objective

    merged = Objective(chosen, 4).value(bare.model)
    assert merged == pytest.approx(bare.state.prune_steps[-1].loss, rel=1e-4)
    assert ours < evaluate_task(bare.model, tokenizer, recipe.task)["task_loss"]


@pytest.mark.slow
def test_an_interrupted_run_continues(task, tmp_path, monkeypatch):
    monkeypatch.setattr(snapshots, "SECONDS_BETWEEN_SAVES", 0.0)
    model, tokenizer = TINY_MODELS["llama"]().float(), tiny_tokenizer()
    recipe = _recipe(task, "basel")

    class Stop:
        left = 4

        def __call__(self, items, what, total):
            for item in items:
                if what.startswith("selecting"):
                    if self.left == 0:
                        raise KeyboardInterrupt
                    self.left -= 1
                yield item

    cache = Cache(tmp_path)
    stopped = RunContext(cache, Stop())
    with pytest.raises(KeyboardInterrupt):
        prune_for_task(model, tokenizer, recipe, stopped)
    continued = prune_for_task(model, tokenizer, recipe, RunContext(cache))
    whole = prune_for_task(model, tokenizer, recipe)
    for ours, theirs in zip(
        continued.model.parameters(), whole.model.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_progress_says_how_much_is_kept_and_the_loss(task):
    seen: list[str] = []

    def track(items, what, total):
        seen.append(what)
        return items

    model = TINY_MODELS["llama"]().float()
    recipe = _recipe(task, "basel", prune_until=1.0)
    prune_for_task(model, tiny_tokenizer(), recipe, RunContext(progress=track))
    assert any("kept 0." in what and "loss" in what for what in seen)


def test_answers_alone_or_all_tokens_are_counted(task):
    model, tokenizer = TINY_MODELS["llama"]().float(), tiny_tokenizer()
    rows_of = tasks.load_task_rows
    answers = rows_of(model, tokenizer, task)
    everything = rows_of(model, tokenizer, replace(task, labels="all"))
    assert answers.scored.sum() < everything.scored.sum()
    assert torch.equal(answers.ids, everything.ids)


def test_a_method_that_moves_cuts_into_biases_is_refused(task):
    recipe = _recipe(task).with_changes(method="afm", method_options={})
    model = TINY_MODELS["qwen2_bias"]().float()
    with pytest.raises(InputError, match="svd, svd_llm or obd"):
        prune_for_task(model, tiny_tokenizer(), recipe)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": None}, "--task"),
        ({"pruning": None}, "--task"),
        ({"layer": "sparse_dictionary"}, "pivoted or lowrank"),
        ({"sharing": SharingRecipe(rule="same_input")}, "sharing"),
        ({"budget": 0.001}, "budget"),
        ({"task": TaskRecipe(data="arithmetic:train:4", length=100_000)}, "reads at most"),
        ({"task": TaskRecipe(data="no/such/file.jsonl")}, "no/such/file"),
    ],
)
def test_bad_input_is_named(task, changes, words, tmp_path):
    model = TINY_MODELS["llama"]().float()
    recipe = _recipe(task, "basel")
    with pytest.raises(InputError, match=words):
        prune_for_task(model, tiny_tokenizer(), recipe.with_changes(**changes))


def test_a_recipe_with_a_task_survives_yaml(task, tmp_path):
    recipe = _recipe(task, "bsi", importance_options={"probes": 4})
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    from spectrim.pipeline.presets import load_recipe

    assert load_recipe(str(path)) == recipe
    assert isinstance(load_recipe(str(path)).pruning, PruningOptions)


def test_scoring_every_basis_of_the_bundled_model_costs_2k_plus_1_passes(task):
    from spectrim import checkpoint
    from spectrim.data.tasks import task_loss
    from spectrim.pipeline.prune_for_task import spectral_copy
    from spectrim.pruning import IMPORTANCE, Objective

    model, tokenizer = checkpoint.load("reference", dtype=torch.float32)
    recipe = Recipe(method="svd", task=replace(task, limit=4))
    spectral, layers = spectral_copy(model, tokenizer, recipe)
    rows = tasks.load_task_rows(model, tokenizer, recipe.task)
    calls = 0

    def counted(given, batch):
        nonlocal calls
        calls += 1
        return task_loss(given, batch)

    objective = Objective(rows, 4, counted)
    for name, options, allowed in [("kronecker", {}, 1), ("hutchinson", {"probes": 3}, 7)]:
        calls = 0
        found = IMPORTANCE.get(name).estimate(
            spectral, layers, objective, IMPORTANCE.options(name, options)
        )
        assert calls == found.passes == allowed
        assert sum(len(s) for s in found.scores.values()) == sum(
            layer.bases for layer in layers.values()
        )
