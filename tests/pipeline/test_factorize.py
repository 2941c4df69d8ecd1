"""One kept value from tokens to curves: its key, its path, and that it is the same again."""

from __future__ import annotations

import pytest
import torch

from spectrim.decompositions import DECOMPOSITIONS
from spectrim.errors import NumericalError
from spectrim.pipeline.calibrate import calibrate
from spectrim.pipeline.plan import factorize, plan
from spectrim.pipeline.recipe import HessianAveragingRecipe, ProbeRecipe, Recipe
from spectrim.planning import Decomposition
from spectrim.runtime.cache import Cache
from spectrim.runtime.context import RunContext
from tests.runs import Forwards, small_recipe, text_file
from tests.tiny_models import TINY_MODELS, tiny_llama, tiny_tokenizer


@pytest.fixture
def text(tmp_path):
    return text_file(tmp_path / "text.txt")


def made(text, cache=None, model=None, **changes) -> Decomposition:
    recipe = small_recipe(text, **changes)
    return factorize(
        model or tiny_llama(), tiny_tokenizer(), recipe, RunContext(cache or Cache(None))
    )


def same(one: Decomposition, two: Decomposition) -> bool:
    assert one.shapes == two.shapes
    return one.correction == two.correction and all(
        torch.equal(one.curves[name], two.curves[name])
        and torch.equal(one.factors[name].left, two.factors[name].left)
        and torch.equal(one.factors[name].right, two.factors[name].right)
        and torch.equal(one.factors[name].spectrum, two.factors[name].spectrum)
        for name in one.shapes
    )


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["llama", "moe"])
def test_two_runs_are_the_same(text, name):
    one = made(text, model=TINY_MODELS[name]())
    two = made(text, model=TINY_MODELS[name]())
    assert same(one, two)
    recipe = small_recipe(text)
    assert plan(one, recipe) == plan(two, recipe)


@pytest.mark.parametrize("method", ["obd", "svd_llm"])
def test_a_kept_result_needs_no_forward_pass(text, tmp_path, method, monkeypatch):
    cache = Cache(tmp_path / "kept")
    first = made(text, cache, method=method)
    model = tiny_llama()
    monkeypatch.setattr("spectrim.pipeline.calibrate.decompose", _not_again)
    monkeypatch.setattr("spectrim.pipeline.plan.decompose", _not_again)
    with Forwards(model) as forwards:
        second = made(text, cache, model, method=method)
    assert forwards.count == 0
    assert same(first, second)
    assert first.provenance == second.provenance


def _not_again(*arguments: object) -> None:
    raise AssertionError("decomposed again")


def test_only_what_changed_is_made_again(text, tmp_path):
    """Budget, allocation and layer never matter; measuring does not calibrate again."""
    cache = Cache(tmp_path / "kept")
    made(text, cache)
    model = tiny_llama()
    with Forwards(model) as forwards:
        made(text, cache, model, budget=0.3, allocation="uniform", layer="lowrank")
        assert forwards.count == 0
        made(text, cache, model, probe=ProbeRecipe(per_layer=False, joint=False))
        assert forwards.count == 0
        made(text, cache, model, probe=ProbeRecipe(per_layer=False, joint_tokens=48))
        assert 0 < forwards.count < 8


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "changes",
    [
        {"include": ("mlp",)},
        {"method": "svd_llm"},
        {"method_options": {"damping": 0.1}},
        {"hessian_averaging": HessianAveragingRecipe(weight=0.25, data_fraction=0.5)},
        {"hessian_averaging": HessianAveragingRecipe(at_budget=0.3, data_fraction=0.5)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_matters_is_in_the_key(text, tmp_path, changes):
    cache = Cache(tmp_path / "kept")
    made(text, cache)
    assert same(made(text, cache, **changes), made(text, **changes))


@pytest.mark.few(1)
@pytest.mark.parametrize("other", ["model", "text", "labels"])
def test_other_models_texts_and_labels_are_kept_apart(text, tmp_path, other):
    cache = Cache(tmp_path / "kept")
    first = made(text, cache)
    changes, model = {}, tiny_llama()
    if other == "model":
        model = tiny_llama(seed=1)
    elif other == "text":
        text = text_file(tmp_path / "other.txt", seed=1)
    else:
        given = small_recipe(text).to_dict()["calibration"]
        changes = {"calibration": given | {"labels": "sampled"}}
    assert not same(first, made(text, cache, model, **changes))


@pytest.mark.parametrize("method", DECOMPOSITIONS.names())
def test_a_path_is_for_methods_of_the_losss_curvature(method):
    curved = "gradient_covariance" in DECOMPOSITIONS.get(method).REQUIRES
    assert Recipe(method=method, budget=0.6).averages_hessian is curved
    assert not Recipe(
        method=method, budget=0.6, hessian_averaging=HessianAveragingRecipe(weight=0)
    ).averages_hessian
    assert not Recipe(method=method, budget=0.8).averages_hessian


def test_a_path_of_no_weight_is_no_path(text):
    without = calibrate(
        tiny_llama(), tiny_tokenizer(), small_recipe(text, hessian_averaging=NO_PATH)
    )
    tiny = HessianAveragingRecipe(weight=1e-12, data_fraction=0.5)
    almost = calibrate(
        tiny_llama(), tiny_tokenizer(), small_recipe(text, hessian_averaging=tiny)
    )
    plain = calibrate(tiny_llama(), tiny_tokenizer(), small_recipe(text, method="svd"))
    assert "path" not in without.provenance
    assert "path" in almost.provenance
    for statistic, by_layer in without.states.items():
        for layer, state in by_layer.items():
            for entry, tensor in state.items():
                assert torch.equal(tensor, plain.states[statistic][layer][entry])
                assert torch.allclose(tensor, almost.states[statistic][layer][entry])


NO_PATH = HessianAveragingRecipe(weight=0)


def test_a_path_of_full_weight_is_the_cut_models_statistics(text):
    """Scaled to the tokens of the first pass, which saw every sequence."""
    full = HessianAveragingRecipe(weight=1, data_fraction=1, at_budget=0.5)
    averaged = calibrate(
        tiny_llama(), tiny_tokenizer(), small_recipe(text, hessian_averaging=full)
    )
    original = calibrate(
        tiny_llama(), tiny_tokenizer(), small_recipe(text, hessian_averaging=NO_PATH)
    )
    first = "model.layers.0.self_attn.q_proj"
    last = "model.layers.1.mlp.down_proj"
    covariance = averaged.layer(first)["input_covariance"]
    assert torch.allclose(covariance, original.layer(first)["input_covariance"])
    changed = averaged.layer(last)["input_covariance"].diagonal()
    before = original.layer(last)["input_covariance"].diagonal()
    assert not torch.allclose(changed, before, rtol=1e-2)
    assert averaged.tokens == original.tokens == 8 * 24


@pytest.mark.few(4)
@pytest.mark.parametrize("method", DECOMPOSITIONS.names())
def test_every_method_runs_with_every_correction(text, method):
    decomposition = made(text, method=method)
    assert decomposition.units == "nats per token"
    chosen = plan(decomposition, small_recipe(text))
    assert chosen.kept <= 0.6
    assert chosen.predicted_loss >= 0
    for curve in decomposition.curves.values():
        assert bool((curve.diff() <= 0).all())
        assert bool((curve >= 0).all())


def test_a_model_through_which_no_loss_comes(text):
    model = tiny_llama()
    model.lm_head.weight.data.zero_()
    with pytest.raises(NumericalError, match="no target layer can be decomposed"):
        made(text, model=model)
