"""One pass for several recipes gives each what a pass of its own gives."""

from __future__ import annotations

import pytest
import torch

from spectrim.calibration import in_memory
from spectrim.errors import CheckpointError, InputError
from spectrim.pipeline.calibrate import calibrate, gather
from spectrim.pipeline.plan import decompose
from spectrim.pipeline.recipe import HessianAveragingRecipe
from spectrim.runtime.cache import Cache
from spectrim.runtime.context import RunContext
from spectrim.statistics import Calibration, StoredStates, concat, select
from tests.runs import small_recipe, text_file
from tests.tiny_models import TINY_MODELS, tiny_llama, tiny_tokenizer
from tests.tolerances import FLOAT32_RELATIVE

THROUGH = ("svd", "asvd", "fwsvd", "gfwsvd", "obd")
"""Methods that read the covariance of a layer's wider side as its weight sees it."""
WHOLE = ("afm", "obd_bias")
METHODS = (*THROUGH, *WHOLE)


@pytest.fixture
def text(tmp_path):
    return text_file(tmp_path / "text.txt")


@pytest.fixture
def recipes(text):
    return {
        method: small_recipe(
            text, method=method, hessian_averaging=HessianAveragingRecipe(weight=0)
        )
        for method in METHODS
    }


class Passes:
    """Counts batches: eight sequences of 24 tokens in batches of 96 tokens are two a pass."""

    def __init__(self, monkeypatch):
        self.count = 0
        original = in_memory.run_batch

        def run(*arguments):
            self.count += 1
            original(*arguments)

        monkeypatch.setattr(in_memory, "run_batch", run)


def same(one: Calibration, two: Calibration) -> bool:
    assert (one.groups, one.counts, one.tokens) == (two.groups, two.counts, two.tokens)
    assert set(one.states) == set(two.states)
    return one.provenance == two.provenance and all(
        torch.equal(state[entry], two.states[statistic][layer][entry])
        for statistic, by_layer in one.states.items()
        for layer, state in by_layer.items()
        for entry in state
    )


@pytest.mark.few(2)
@pytest.mark.parametrize("methods", [THROUGH, WHOLE])
@pytest.mark.parametrize("name", ["llama", "moe"])
def test_one_pass_equals_passes_of_their_own_to_the_last_bit(
    recipes, tmp_path, monkeypatch, name, methods
):
    recipes = {method: recipes[method] for method in methods}
    cache = Cache(tmp_path / "kept")
    model = TINY_MODELS[name]()
    passes = Passes(monkeypatch)
    gather(model, tiny_tokenizer(), list(recipes.values()), RunContext(cache))
    assert passes.count == 2
    shared = {
        m: calibrate(model, tiny_tokenizer(), r, RunContext(cache)) for m, r in recipes.items()
    }
    assert passes.count == 2
    for method, recipe in recipes.items():
        alone = calibrate(TINY_MODELS[name](), tiny_tokenizer(), recipe)
        assert same(shared[method], alone), method


@pytest.mark.slow
def test_all_use_what_one_of_them_needs_in_full(recipes, tmp_path, monkeypatch):
    """Two passes would be four batches; what is predicted does not depend on the form."""
    cache, model = Cache(tmp_path / "kept"), tiny_llama()
    passes = Passes(monkeypatch)
    gather(model, tiny_tokenizer(), list(recipes.values()), RunContext(cache))
    for method, recipe in recipes.items():
        shared = calibrate(model, tiny_tokenizer(), recipe, RunContext(cache))
        assert "wide" not in shared.provenance["key"]
        assert passes.count == 2
        expected = decompose(model, shared, recipe)
        alone = calibrate(model, tiny_tokenizer(), recipe)
        passes.count = 2
        assert ("wide" in alone.provenance["key"]) == (method in THROUGH)
        for layer, curve in decompose(model, alone, recipe).curves.items():
            error = (curve - expected.curves[layer]).abs().max()
            assert error <= FLOAT32_RELATIVE * expected.curves[layer][0], (method, layer)


def test_only_what_is_missing_is_gathered(recipes, tmp_path, monkeypatch):
    """The second pass has no gradient to compute: it is for `input_magnitude` alone."""
    cache = Cache(tmp_path / "kept")
    model = tiny_llama()
    calibrate(model, tiny_tokenizer(), recipes["obd"], RunContext(cache))
    before = {path: path.stat().st_mtime_ns for path in cache.root.iterdir()}
    monkeypatch.setattr(in_memory, "summed_loss", lambda *a: pytest.fail("a backward pass"))
    found = calibrate(model, tiny_tokenizer(), recipes["asvd"], RunContext(cache))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list(cache.root.iterdir())) == len(before) + 1
    monkeypatch.undo()
    assert same(found, calibrate(tiny_llama(), tiny_tokenizer(), recipes["asvd"]))


def test_what_is_kept_is_not_held_in_memory(recipes, tmp_path):
    cache, recipe = Cache(tmp_path / "kept"), recipes["obd"]
    made = calibrate(tiny_llama(), tiny_tokenizer(), recipe, RunContext(cache))
    found = calibrate(tiny_llama(), tiny_tokenizer(), recipe, RunContext(cache))
    for calibration in (made, found):
        assert all(isinstance(s, StoredStates) for s in calibration.states.values())
    assert same(made, calibrate(tiny_llama(), tiny_tokenizer(), recipe))
    assert same(made, found)


def test_other_tokens_need_another_pass(recipes, text, tmp_path, monkeypatch):
    other = recipes["svd"].to_dict()["calibration"] | {"seed": 1}
    both = [recipes["svd"], recipes["asvd"], recipes["svd"].with_changes(calibration=other)]
    passes = Passes(monkeypatch)
    gather(tiny_llama(), tiny_tokenizer(), both, RunContext(Cache(tmp_path / "kept")))
    assert passes.count == 4


def test_a_workspace_that_keeps_nothing_is_of_no_use(recipes):
    with pytest.raises(InputError, match="need a cache with a directory"):
        gather(tiny_llama(), tiny_tokenizer(), list(recipes.values()), RunContext(Cache(None)))


def test_parts_of_different_calibrations_are_not_joined(recipes):
    one = calibrate(tiny_llama(), tiny_tokenizer(), recipes["svd"])
    two = select(calibrate(tiny_llama(), tiny_tokenizer(), recipes["asvd"]), "input_magnitude")
    assert set(concat([one, two]).states) == set(recipes["asvd"].statistics)
    two.tokens += 1
    with pytest.raises(CheckpointError, match="cannot be joined"):
        concat([one, two])
