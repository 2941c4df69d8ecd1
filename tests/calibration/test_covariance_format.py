"""Covariances in fewer numbers: sums like others, chosen by bytes, and used by every method."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch

from spectrim.calibration import CalibrationSettings, MemoryBudget, calibrate
from spectrim.calibration.blockwise import Places
from spectrim.checkpoint.save_sharded import open_streamed
from spectrim.data import TokenBlocks
from spectrim.decompositions import DECOMPOSITIONS
from spectrim.errors import InputError, NumericalWarning
from spectrim.linalg.covariance import dense
from spectrim.models.offload import Activations
from spectrim.models.targets import find_targets
from spectrim.pipeline.calibrate import calibrate as run_calibrate
from spectrim.pipeline.memory_plan import MemoryEstimate, plan_memory
from spectrim.pipeline.plan import decompose
from spectrim.pipeline.recipe import CalibrationRecipe, Recipe
from spectrim.statistics import STATISTICS, Calibration, CovarianceFormat, largest_format
from spectrim.statistics._covariance import convert_format
from tests.calibration.walking import calibrate_blockwise
from tests.runs import small_recipe, text_file
from tests.tiny_models import tiny_llama, tiny_tokenizer, tiny_tokens
from tests.tolerances import BATCH_SPLIT_RELATIVE, FLOAT64_RELATIVE

NAMES = ("gradient_covariance", "input_covariance", "input_mean")
KINDS = ("block_diagonal", "low_rank")
kinds = pytest.mark.parametrize("kind", KINDS)
LENGTH = 12
SHAPES = {target.name: target.shape for target in find_targets(tiny_llama())}
TWO_SHARES = pytest.mark.parametrize("share", [0.7, 0.3])


def full_bytes() -> int:
    return sum(8 * width**2 for shape in SHAPES.values() for width in shape)


def room(kind: str, share: float = 0.4) -> MemoryBudget:
    return MemoryBudget(int(share * full_bytes()), kind)


def made(rows: int, given: MemoryBudget | None, ids=None) -> Calibration:
    model = tiny_llama()
    ids = tiny_tokens(5, LENGTH) if ids is None else ids
    settings = CalibrationSettings(NAMES, tokens_per_batch=rows * LENGTH, memory_budget=given)
    return calibrate(model, find_targets(model), blocks_of(ids), settings)


def blocks_of(ids) -> TokenBlocks:
    return TokenBlocks(ids, None, "fingerprint", "test", len(ids))


def assert_same(one: Calibration, other: Calibration, relative: float) -> None:
    for statistic, by_layer in one.states.items():
        for key, state in by_layer.items():
            expected = other.states[statistic][key]
            assert state.keys() == expected.keys()
            for entry, tensor in state.items():
                error = (tensor - expected[entry]).norm()
                assert error <= relative * expected[entry].norm(), (statistic, key, entry)


@kinds
def test_sums_are_those_of_the_full_ones_reduced(kind):
    found, full = made(5, room(kind, 0.7)), made(5, None)
    forms = room(kind, 0.7).formats(SHAPES, NAMES)
    assert {form.kind for form in forms.values()} == {"full", kind}
    for (statistic, layer), form in forms.items():
        state = full.states[statistic].get(layer)
        if state is not None and form.kind != "full":
            full.states[statistic][layer] = convert_format(state, form)
    assert_same(found, full, BATCH_SPLIT_RELATIVE)


@kinds
def test_independent_of_batches_and_mergeable(kind):
    whole = made(5, room(kind))
    assert_same(made(2, room(kind)), whole, BATCH_SPLIT_RELATIVE)
    ids = tiny_tokens(5, LENGTH)
    parts = [made(5, room(kind), ids[:2]), made(5, room(kind), ids[2:])]
    parts[0].merge(parts[1])
    assert_same(parts[0], whole, BATCH_SPLIT_RELATIVE)


@kinds
def test_block_by_block_they_are_the_same(kind, tmp_path):
    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    streamed = open_streamed(tmp_path / "model").streamed
    settings = CalibrationSettings(NAMES, tokens_per_batch=5 * LENGTH, memory_budget=room(kind))
    places = Places(Activations(tmp_path / "activations", 0), tmp_path / "statistics")
    targets, blocks = find_targets(streamed.model), blocks_of(tiny_tokens(5, LENGTH))
    found = calibrate_blockwise(streamed, targets, blocks, settings, places)
    assert_same(made(5, room(kind)), found, BATCH_SPLIT_RELATIVE)


@kinds
@TWO_SHARES
def test_they_fit_and_use_their_room(kind, share):
    given = room(kind, share)
    forms = given.formats(SHAPES, NAMES[:2])
    widths = {key: STATISTICS.get(key[0]).width(SHAPES[key[1]]) for key in forms}
    used = {key: form.bytes(widths[key]) for key, form in forms.items()}
    assert given.bytes * 0.6 < sum(used.values()) <= given.bytes
    assert made(5, given).bytes <= given.bytes
    whole = [widths[key] for key, form in forms.items() if form.kind == "full"]
    given_up = [widths[key] for key, form in forms.items() if form.kind != "full"]
    assert max(whole, default=0) <= min(given_up)


@kinds
def test_enough_room_is_no_change_and_too_little_is_an_error(kind):
    forms = room(kind, 1.0).formats(SHAPES, NAMES[:2])
    assert {form.kind for form in forms.values()} == {"full"}
    with pytest.raises(InputError, match="covariance_bytes 100 is too little"):
        MemoryBudget(100, kind).formats(SHAPES, NAMES)


@kinds
@pytest.mark.parametrize("width", [1, 2, 7, 64])
def test_the_largest_form_is_within_its_limit(kind, width):
    for limit in (7, 8, 9, 100, 8 * width, 8 * width**2 - 1, 8 * width**2):
        form = largest_format(width, limit, kind)
        assert form is None or form.bytes(width) <= limit
    assert largest_format(width, 8 * width**2, kind) == CovarianceFormat()
    assert sum(CovarianceFormat("block_diagonal", 5).sizes(width)) == width


@pytest.mark.few(6)
@kinds
@pytest.mark.parametrize("method", DECOMPOSITIONS.names())
def test_every_method_works_from_them(kind, method, tmp_path):
    """As from the dense matrices that they stand for, where it reads nothing besides."""
    model, text = tiny_llama().double(), text_file(tmp_path / "text.txt")
    recipe = small_recipe(text, method=method, budget=0.8)
    if not set(recipe.statistics) <= set(NAMES):
        pytest.skip("reads other statistics than covariances of inputs and gradients")
    given = replace(
        recipe.calibration,
        covariance_bytes=int(0.4 * full_bytes()),
        covariance_format=kind,
    )
    recipe = recipe.with_changes(calibration=given)
    calibration = run_calibrate(model, tiny_tokenizer(), recipe)
    with warnings.catch_warnings():
        warnings.simplefilter("error", NumericalWarning)
        found = decompose(model, calibration, recipe)
    assert all(torch.isfinite(curve).all() for curve in found.curves.values())
    assert all((curve >= 0).all() for curve in found.curves.values())
    if "input_mean" in recipe.statistics:
        return
    for name in ("input_covariance", "gradient_covariance"):
        for layer, state in calibration.states[name].items():
            sums = dense(STATISTICS.get(name).finish(state, 1))
            calibration.states[name][layer] = {"sum": sums}
    expected = decompose(model, calibration, recipe)
    for layer, factors in expected.factors.items():
        scale = expected.curves[layer][0]
        difference = (found.curves[layer] - expected.curves[layer]).abs().max()
        assert difference <= FLOAT64_RELATIVE * scale
        error = (found.factors[layer].weight(5) - factors.weight(5)).norm()
        assert error <= FLOAT64_RELATIVE * factors.weight(5).norm()


def test_recipes_name_them(tmp_path):
    text = text_file(tmp_path / "text.txt")
    given = CalibrationRecipe(data=str(text), sequences=8, length=24, covariance_bytes=200_000)
    assert given.memory_budget == MemoryBudget(200_000, "low_rank")
    assert CalibrationRecipe().memory_budget is None
    calibration = run_calibrate(tiny_llama(), tiny_tokenizer(), Recipe(calibration=given))
    assert calibration.bytes <= 200_000
    assert "room" in calibration.provenance["key"]


def test_memory_chooses_them_where_a_block_does_not_fit(tmp_path, monkeypatch):
    monkeypatch.setattr("spectrim.pipeline.memory_plan.resident_bytes", lambda: 2**29)
    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    recipe = small_recipe(text_file(tmp_path / "text.txt"), allocation="uniform")
    opened = open_streamed(tmp_path / "model")
    needs = MemoryEstimate.of(opened, recipe)
    smaller = needs.with_statistics(needs.statistics() // 8)
    assert smaller.statistics() < needs.statistics() // 4
    plan = plan_memory(opened, recipe, needs.streamed(1))
    assert plan.covariance_bytes is None
    if smaller.streamed(1) < needs.streamed(1):
        plan = plan_memory(opened, recipe, smaller.streamed(1))
        assert plan.covariance_bytes is not None
        assert plan.fitted(recipe).calibration.covariance_bytes == plan.covariance_bytes
        assert "calibration.covariance_bytes" in str(plan)
    with pytest.raises(InputError, match="is too little: streaming"):
        plan_memory(opened, recipe, 2**20)
