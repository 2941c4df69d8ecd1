"""Covariances of wider sides summed through the layers' weights, against the full ones."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from spectrim.calibration import CalibrationSettings, MemoryBudget, calibrate
from spectrim.calibration.blockwise import Places
from spectrim.calibration.in_memory import calibrate_steps
from spectrim.checkpoint.save_sharded import open_streamed
from spectrim.data import TokenBlocks
from spectrim.errors import InputError
from spectrim.linalg.covariance import ProjectedCovariance, dense
from spectrim.linalg.truncated import Factors
from spectrim.models.experts import fused_expert_names, split_experts
from spectrim.models.linear import get_weight
from spectrim.models.offload import Activations
from spectrim.models.targets import find_targets
from spectrim.pipeline.plan import decompose, factorize, plan
from spectrim.pipeline.recipe import (
    CalibrationRecipe,
    CorrectionRecipe,
    HessianAveragingRecipe,
    ProbeRecipe,
    QuantizationRecipe,
    Recipe,
    RefinementRecipe,
    SharingRecipe,
)
from spectrim.planning.probe import swap_weights
from spectrim.statistics import (
    Calibration,
    CovarianceFormat,
    load_calibration,
    save_calibration,
)
from tests.calibration.walking import calibrate_blockwise
from tests.runs import small_recipe, text_file
from tests.tiny_models import TINY_MODELS, tiny_llama, tiny_tokenizer, tiny_tokens
from tests.tolerances import (
    BATCH_SPLIT_RELATIVE,
    BFLOAT16_RELATIVE,
    FLOAT32_RELATIVE,
    FLOAT64_RELATIVE,
    SEQUENTIAL_RELATIVE,
    SPECTRUM_RELATIVE,
)

NAMES = ("gradient_covariance", "input_covariance")
LENGTH = 12
DOWN = "model.layers.1.mlp.down_proj"
models = pytest.mark.parametrize("name", sorted(TINY_MODELS))


def settings_for(rows: int = 5, **changes) -> CalibrationSettings:
    given = {"wide": "projected"} | changes
    return CalibrationSettings(NAMES, tokens_per_batch=rows * LENGTH, **given)


def blocks_of(ids) -> TokenBlocks:
    return TokenBlocks(ids, None, "fingerprint", "test", len(ids))


def built(name: str):
    model = TINY_MODELS[name]()
    split_experts(model, fused_expert_names(model))
    return model


def made(model, settings: CalibrationSettings) -> Calibration:
    return calibrate(model, find_targets(model), blocks_of(tiny_tokens(5, LENGTH)), settings)


def sums(calibration: Calibration) -> dict[tuple[str, str, str], torch.Tensor]:
    return {
        (statistic, key, entry): tensor
        for statistic, by_layer in calibration.states.items()
        for key, state in by_layer.items()
        for entry, tensor in state.items()
    }


def assert_same(one: Calibration, other: Calibration, relative: float) -> None:
    left, right = sums(one), sums(other)
    assert left.keys() == right.keys()
    for key, tensor in left.items():
        assert (tensor - right[key]).norm() <= relative * right[key].norm() + 1e-12, key


def close(found: torch.Tensor, expected: torch.Tensor, relative: float) -> bool:
    return bool((found - expected).norm() <= relative * expected.norm())


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@models
def test_they_are_the_full_ones_through_the_weights(name, dtype):
    """Biases, Conv1D, experts, tied embeddings and grouped heads are among the models."""
    relative = {"float64": FLOAT64_RELATIVE, "float32": FLOAT32_RELATIVE}
    model = built(name).to(getattr(torch, dtype))
    found, full = made(model, settings_for()), made(model, settings_for(wide="full"))
    through = 0
    for layer in full.groups:
        weight = get_weight(model.get_submodule(layer)).detach().double()
        for statistic, image in (NAMES[0], weight.T), (NAMES[1], weight):
            known, whole = found.layer(layer)[statistic], full.layer(layer)[statistic]
            if not isinstance(known, ProjectedCovariance):
                assert torch.equal(known, whole)
                continue
            through += 1
            assert len(known.product) == min(weight.shape)
            allowed = relative.get(dtype, BFLOAT16_RELATIVE)
            assert close(known.diagonal(), whole.diagonal(), allowed)
            assert close(known.product, image @ whole @ image.T, allowed)
    assert through >= 2
    assert found.bytes < full.bytes


def test_an_input_that_several_layers_read_stays_in_full():
    """Keys and values are wide where heads are grouped, and read what queries read."""
    model = built("gqa")
    found = made(model, settings_for())
    q, k = (f"model.layers.0.self_attn.{name}_proj" for name in "qk")
    rows, columns = get_weight(model.get_submodule(k)).shape
    assert rows < columns
    assert found.groups[k] == q
    assert isinstance(found.layer(k)["input_covariance"], torch.Tensor)
    assert isinstance(found.layer(DOWN)["input_covariance"], ProjectedCovariance)


@pytest.mark.parametrize("name", ["llama", "gpt2", "moe"])
def test_independent_of_batches_mergeable_and_stored(name, tmp_path):
    model = built(name)
    whole = made(model, settings_for(5))
    assert_same(made(model, settings_for(2)), whole, BATCH_SPLIT_RELATIVE)
    given = model, find_targets(model), blocks_of(tiny_tokens(5, LENGTH))
    steps = calibrate_steps(*given, settings_for(2))
    next(steps), next(steps)
    save_calibration(next(steps), tmp_path / "partial")
    steps.close()
    resumed = calibrate(*given, settings_for(2), load_calibration(tmp_path / "partial"))
    assert_same(resumed, made(model, settings_for(2)), 0.0)
    twice = made(model, settings_for(5))
    twice.merge(whole)
    for key, tensor in sums(twice).items():
        assert close(tensor, 2 * sums(whole)[key], FLOAT64_RELATIVE)


@pytest.mark.parametrize("name", ["llama", "gpt2", "moe"])
def test_block_by_block_they_are_the_same(name, tmp_path):
    TINY_MODELS[name]().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    streamed = open_streamed(tmp_path / "model").streamed
    places = Places(Activations(tmp_path / "activations", 0), tmp_path / "statistics")
    targets, blocks = find_targets(streamed.model), blocks_of(tiny_tokens(5, LENGTH))
    found = calibrate_blockwise(streamed, targets, blocks, settings_for(5), places)
    assert_same(made(built(name), settings_for(5)), found, BATCH_SPLIT_RELATIVE)


def test_where_a_layer_holds_another_weight_the_original_is_asked_about():
    model = tiny_llama().double()
    targets = find_targets(model)
    originals = {t.name: get_weight(model.get_submodule(t.name)) for t in targets}
    module = model.get_submodule(DOWN)
    u, s, v = torch.linalg.svd(originals[DOWN].detach(), full_matrices=False)
    with swap_weights(module, Factors(u, s[:, None] * v, s), 3):
        found = made(model, settings_for(originals=originals))
        full = made(model, settings_for(wide="full"))
    weight = originals[DOWN].detach()
    expected = weight @ full.layer(DOWN)["input_covariance"] @ weight.T
    assert close(found.layer(DOWN)["input_covariance"].product, expected, FLOAT64_RELATIVE)


@pytest.mark.few(8)
@pytest.mark.parametrize("method", ["obd", "svd_llm", "svd", "asvd", "fwsvd", "gfwsvd"])
@models
def test_decompositions_are_those_of_full_covariances(name, method, tmp_path):
    model = built(name).double()
    recipe = Recipe(method=method)
    assert recipe.wide == "projected"
    settings = replace(settings_for(), statistics=recipe.statistics)
    found = decompose(model, made(model, settings), recipe)
    settings = replace(settings, wide="full")
    expected = decompose(model, made(model, settings), recipe)
    for layer, factors in expected.factors.items():
        curve, rank = expected.curves[layer], max(1, factors.max_rank // 3)
        error = (found.curves[layer] - curve).abs().max()
        assert error <= SPECTRUM_RELATIVE * curve[0], layer
        error = (found.spectrum(layer) - factors.spectrum).abs().max()
        assert error <= SPECTRUM_RELATIVE * factors.spectrum[0], layer
        exact = found.factors[layer].weight(factors.max_rank)
        assert close(exact, get_weight(model.get_submodule(layer)), FLOAT64_RELATIVE)
        assert close(found.factors[layer].weight(rank), factors.weight(rank), FLOAT32_RELATIVE)


def root(covariance: torch.Tensor, damping: float) -> torch.Tensor:
    ridge = damping * covariance.diagonal().mean()
    return torch.linalg.cholesky(covariance + ridge * torch.eye(len(covariance)))


@pytest.mark.parametrize("method", ["obd", "svd_llm"])
@models
def test_they_are_the_optimum_of_the_dense_problem(name, method):
    """Damped Cholesky factors of both covariances in full, an SVD, and inverses."""
    model = built(name).double()
    recipe = Recipe(method=method)
    damping = {"obd": 1e-3, "svd_llm": 1e-6}[method]
    full = made(model, settings_for(wide="full"))
    found = decompose(model, made(model, settings_for()), recipe)
    for layer, factors in found.factors.items():
        weight = get_weight(model.get_submodule(layer)).detach()
        inner = root(full.layer(layer)["input_covariance"], damping)
        outer = torch.eye(len(weight), dtype=torch.float64)
        if method == "obd":
            outer = root(full.layer(layer)["gradient_covariance"], damping)
        u, s, v = torch.linalg.svd(outer.T @ weight @ inner, full_matrices=False)
        assert (factors.spectrum - s).abs().max() <= SPECTRUM_RELATIVE * s[0]
        rank = max(1, len(s) // 3)
        best = (u[:, :rank] * s[:rank]) @ v[:rank]
        expected = torch.linalg.inv(outer).T @ best @ torch.linalg.inv(inner)
        assert close(factors.weight(rank), expected, FLOAT32_RELATIVE), layer


def test_the_whole_trip_with_an_average_along_the_path(tmp_path):
    text = text_file(tmp_path / "text.txt")
    unmeasured = ProbeRecipe(per_layer=False, joint=False)
    path = HessianAveragingRecipe(data_fraction=1, at_budget=0.5)
    recipe = small_recipe(text, hessian_averaging=path, budget=0.5, probe=unmeasured)
    given = replace(recipe.calibration, wide_covariances="full")
    assert (recipe.wide, recipe.with_changes(calibration=given).wide) == ("projected", "full")
    found, expected = (
        factorize(tiny_llama(), tiny_tokenizer(), r)
        for r in (recipe, recipe.with_changes(calibration=given))
    )
    for layer, curve in expected.curves.items():
        assert (found.curves[layer] - curve).abs().max() <= SEQUENTIAL_RELATIVE * curve[0], (
            layer
        )
    plans = [plan(d, recipe).ranks for d in (found, expected)]
    assert sum(abs(plans[0].get(n, 0) - r) for n, r in plans[1].items()) <= 4


def test_what_reads_them_whole_gets_them_in_full():
    changes = {
        "calibration": CalibrationRecipe(covariance_bytes=10**6),
        "sharing": SharingRecipe(rule="same_input"),
        "correction": CorrectionRecipe(),
        "quantization": QuantizationRecipe(backend="rtn"),
        "refinement": (RefinementRecipe("saes_svd"),),
    }
    assert Recipe().wide == "projected"
    assert Recipe(refinement=(RefinementRecipe("finetune"),)).wide == "projected"
    for name, value in changes.items():
        assert Recipe(**{name: value}).wide == "full", name
    for method in ("obd_bias", "eora", "afm"):
        assert Recipe(method=method).wide == "full", method


def test_asked_for_more_than_was_summed_they_say_so():
    known = made(tiny_llama(), settings_for()).layer(DOWN)["input_covariance"]
    for ask in (
        lambda: dense(known),
        lambda: known @ torch.eye(*known.shape, dtype=torch.float64),
        lambda: known.centered(torch.zeros(known.shape[0])),
        lambda: known.metric(0.1, "C").whiten(torch.eye(known.shape[0])),
        lambda: known.metric(0.1, "C").gram(torch.eye(known.shape[0])),
    ):
        with pytest.raises(InputError, match="through"):
            ask()
    with pytest.raises(InputError, match="give one"):
        settings_for(memory_budget=MemoryBudget(10**6))


def test_their_bytes():
    assert CovarianceFormat("projected", 3).bytes(10) == 8 * (9 + 10)
    model = tiny_llama()
    states = made(model, settings_for()).states["input_covariance"][DOWN]
    small, wide = get_weight(model.get_submodule(DOWN)).shape
    numbers = sum(tensor.numel() for tensor in states.values())
    assert CovarianceFormat("projected", small).bytes(wide) == 8 * numbers


def test_passes_leave_the_model_and_its_inputs_alone():
    model = tiny_llama()
    before = copy.deepcopy(model.state_dict())
    made(model, settings_for())
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    assert not any(hooks)
