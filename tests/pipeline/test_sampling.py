"""Leverage sampling in the pipeline: what all candidates give, and what the sample gives."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from spectrim.errors import InputError
from spectrim.pipeline import compatibility
from spectrim.pipeline.calibrate import calibrate, gather
from spectrim.pipeline.plan import factorize
from spectrim.pipeline.recipe import HessianAveragingRecipe, Recipe, TaskRecipe
from spectrim.pruning.options import PruningOptions
from spectrim.runtime.cache import Cache
from spectrim.runtime.context import RunContext
from tests.runs import Forwards, small_recipe, text_file
from tests.tiny_models import tiny_llama, tiny_moe, tiny_tokenizer

PLAIN = HessianAveragingRecipe(weight=0)
INPUTS, GRADIENTS = "input_covariance", "gradient_covariance"


@pytest.fixture
def recipe(tmp_path) -> Recipe:
    return leverage(small_recipe(text_file(tmp_path / "text.txt"), hessian_averaging=PLAIN))


def leverage(recipe: Recipe, **changes: object) -> Recipe:
    calibration = replace(recipe.calibration, sampling="leverage", candidates=3, **changes)
    return recipe.with_changes(calibration=calibration)


def random_rows(recipe: Recipe, factor: int) -> Recipe:
    calibration = recipe.calibration
    return recipe.with_changes(
        calibration=replace(
            calibration, sampling="random", sequences=factor * calibration.sequences
        )
    )


@pytest.mark.parametrize("build", [tiny_llama, tiny_moe])
def test_inputs_are_those_of_all_candidates_to_the_bit(recipe, build):
    found = calibrate(build(), tiny_tokenizer(), recipe)
    everything = calibrate(build(), tiny_tokenizer(), random_rows(recipe, 3))
    assert found.tokens == everything.tokens == 24 * 24
    assert found.counts == everything.counts
    assert set(found.states) == set(everything.states)
    for key, state in everything.states[INPUTS].items():
        assert all(torch.equal(t, found.states[INPUTS][key][e]) for e, t in state.items())
    few = calibrate(build(), tiny_tokenizer(), random_rows(recipe, 1))
    traces = [
        sum(float(s["sum"].trace()) for s in c.states[GRADIENTS].values() if "sum" in s)
        / c.tokens
        for c in (found, everything, few)
    ]
    assert traces[0] != traces[1]
    assert traces[0] == pytest.approx(traces[1], rel=0.5)


def test_the_cache_gives_the_same_without_a_pass(recipe, tmp_path):
    context, model = RunContext(Cache(tmp_path / "kept")), tiny_llama()
    first = calibrate(model, tiny_tokenizer(), recipe, context)
    with Forwards(model) as forwards:
        again = calibrate(model, tiny_tokenizer(), recipe, context)
        gather(model, tiny_tokenizer(), [recipe], context)
    assert forwards.count <= 1, "at most the tokens that show which layers are used"
    for statistic, by_layer in first.states.items():
        for key, state in by_layer.items():
            for entry, tensor in state.items():
                assert torch.equal(again.states[statistic][key][entry], tensor)


def test_keys_tell_candidates_and_seeds_apart(recipe):
    keys = []
    for changes in ({}, {"candidates": 2}, {"seed": 1}):
        other = recipe.with_changes(calibration=replace(recipe.calibration, **changes))
        keys.append(str(calibrate(tiny_llama(), tiny_tokenizer(), other).provenance["key"]))
    keys.append(
        str(calibrate(tiny_llama(), tiny_tokenizer(), random_rows(recipe, 1)).provenance["key"])
    )
    assert len(set(keys)) == 4


def test_a_whole_run_with_averaged_hessians_and_probes(recipe):
    recipe = recipe.with_changes(hessian_averaging=HessianAveragingRecipe(data_fraction=0.5))
    assert recipe.averages_hessian
    result = factorize(tiny_llama(), tiny_tokenizer(), recipe)
    assert result.units == "nats per token"
    assert all(torch.isfinite(curve).all() for curve in result.curves.values())


@pytest.mark.slow
def test_a_text_without_more_sequences_is_used_as_it_is(recipe):
    calibration = replace(recipe.calibration, sequences=500)
    whole = recipe.with_changes(calibration=calibration)
    with pytest.warns(UserWarning, match="the text gives"):
        found = calibrate(tiny_llama(), tiny_tokenizer(), whole)
    with pytest.warns(UserWarning, match="the text gives"):
        expected = calibrate(tiny_llama(), tiny_tokenizer(), random_rows(whole, 1))
    for key, state in expected.states[GRADIENTS].items():
        assert all(torch.equal(t, found.states[GRADIENTS][key][e]) for e, t in state.items())


def test_what_does_not_combine_is_said(recipe):
    with pytest.raises(InputError, match="leverage sampling and --memory"):
        compatibility.check(recipe, compatibility.STREAMING)
    with pytest.raises(InputError, match="leverage sampling and pruning"):
        recipe.with_changes(pruning=PruningOptions(), task=TaskRecipe("arithmetic:train:8"))
