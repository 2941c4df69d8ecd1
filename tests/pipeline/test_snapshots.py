"""Snapshots of a stopped run, and of a damaged one."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest

from spectrim.errors import NumericalWarning
from spectrim.pipeline import calibrate, decompose
from spectrim.pipeline.plan import factorize
from spectrim.pipeline.recipe import HessianAveragingRecipe, ProbeRecipe
from spectrim.planning import solver
from spectrim.runtime import snapshots
from spectrim.runtime.cache import Cache
from spectrim.runtime.context import RunContext
from spectrim.statistics import save_calibration
from tests.runs import Forwards, small_recipe, text_file
from tests.tiny_models import tiny_llama, tiny_tokenizer

SHORT = {
    "hessian_averaging": HessianAveragingRecipe(weight=0),
    "probe": ProbeRecipe(per_layer=False, joint=False),
}


class Stopped(Exception):
    pass


@pytest.fixture
def recipe(tmp_path):
    return small_recipe(text_file(tmp_path / "text.txt"), **SHORT)


def stopped_after(monkeypatch, layers: int) -> None:
    made = []

    def counted(*arguments):
        if len(made) == layers:
            raise Stopped
        made.append(arguments)
        return decompose_layer(*arguments)

    decompose_layer = solver.decompose_layer
    monkeypatch.setattr(solver, "decompose_layer", counted)
    monkeypatch.setattr(snapshots, "SECONDS_BETWEEN_SAVES", 0.0)


def test_a_damaged_piece_is_made_again(recipe, tmp_path, monkeypatch):
    cache = Cache(tmp_path / "kept")
    with monkeypatch.context() as patch:
        stopped_after(patch, 5)
        with pytest.raises(Stopped):
            factorize(tiny_llama(), tiny_tokenizer(), recipe, RunContext(cache))
    (directory,) = (tmp_path / "kept").glob("*.parts")
    stored = sorted(directory.glob("*.safetensors"))
    assert len(stored) == 5
    stored[2].write_bytes(stored[2].read_bytes()[:100])
    with pytest.warns(UserWarning, match="again"):
        found = factorize(tiny_llama(), tiny_tokenizer(), recipe, RunContext(cache))
    expected = factorize(tiny_llama(), tiny_tokenizer(), recipe)
    assert list(found.shapes) == list(expected.shapes)
    assert all((found.curves[n] == expected.curves[n]).all() for n in expected.shapes)
    assert not directory.exists()


def test_stopped_between_storing_two_statistics(recipe, tmp_path, monkeypatch):
    """All sums are in the running file still: no token is seen again."""
    cache, kept = Cache(tmp_path / "kept"), []

    def save(calibration, path):
        if len(kept) == 1 and path.parent.suffix != ".parts":
            raise Stopped
        save_calibration(calibration, path)
        kept.extend([path] * (path.parent.suffix != ".parts"))

    with monkeypatch.context() as patch:
        patch.setattr(snapshots, "SECONDS_BETWEEN_SAVES", -1.0)
        patch.setattr(calibrate, "save_calibration", save)
        with pytest.raises(Stopped):
            calibrate.calibrate(tiny_llama(), tiny_tokenizer(), recipe, RunContext(cache))
    assert len(kept) == 1
    model = tiny_llama()
    with Forwards(model) as forwards:
        found = calibrate.calibrate(model, tiny_tokenizer(), recipe, RunContext(cache))
    assert forwards.count == 0
    expected = calibrate.calibrate(tiny_llama(), tiny_tokenizer(), replace(recipe))
    assert found.digest(found.groups, recipe.statistics) == expected.digest(
        found.groups, recipe.statistics
    )
    assert not list((tmp_path / "kept").glob("*.parts"))


def test_warnings_of_a_calibration_and_a_decomposition_are_repeated(
    recipe, tmp_path, monkeypatch
):
    """From the cache each is given once, as where it was made."""

    def given() -> list[str]:
        with pytest.warns(NumericalWarning) as shown:
            factorize(
                tiny_llama(), tiny_tokenizer(), recipe, RunContext(Cache(tmp_path / "kept"))
            )
        return sorted(str(each.message) for each in shown)

    with monkeypatch.context() as patch:
        for module, name in ((calibrate, "all_reduce"), (decompose, "layers_with_signal")):
            patch.setattr(module, name, warning(getattr(module, name)))
        first = given()
    assert first == ["all_reduce is doubtful", "layers_with_signal is doubtful"]
    assert given() == first
    for path in (tmp_path / "kept").glob("decomposition-*"):
        path.unlink()
    assert given() == first[:1], "decomposed without a doubt"


def warning(function):
    def warned(*arguments):
        warnings.warn(f"{function.__name__} is doubtful", NumericalWarning, stacklevel=2)
        return function(*arguments)

    return warned


def test_another_network_with_the_same_weights_is_calibrated_again(recipe, tmp_path):
    cache = RunContext(Cache(tmp_path / "kept"))
    calibrate.calibrate(tiny_llama(), tiny_tokenizer(), recipe, cache)
    for changes, again in (({}, False), ({"hidden_act": "relu"}, True)):
        model = tiny_llama()
        model.config.update(changes)
        with Forwards(model) as seen:
            calibrate.calibrate(model, tiny_tokenizer(), recipe, cache)
        assert (seen.count > 0) == again
