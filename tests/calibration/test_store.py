"""Calibrations on disk, resumed and merged."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from spectrim.calibration import CalibrationSettings, calibrate
from spectrim.calibration.in_memory import calibrate_steps
from spectrim.data import TokenBlocks
from spectrim.errors import CheckpointError, InputError, ModelError, SpectrimError
from spectrim.models.fingerprint import model_fingerprint
from spectrim.models.targets import find_targets
from spectrim.runtime.files import write_tensors
from spectrim.statistics import (
    STATISTICS,
    Calibration,
    load_calibration,
    open_calibration,
    save_calibration,
)
from tests.tiny_models import tiny_llama, tiny_qwen2_bias, tiny_tokens
from tests.tolerances import SAMPLED_FISHER_RELATIVE

SETTINGS = CalibrationSettings(tuple(STATISTICS.names()), tokens_per_batch=24)
FORWARD = tuple(n for n in STATISTICS.names() if not STATISTICS.get(n).NEEDS_GRADIENT)


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


@pytest.fixture(scope="module")
def blocks() -> TokenBlocks:
    return TokenBlocks(tiny_tokens(6, 12), None, "abc", "test", 6, {"length": 12})


@pytest.fixture(scope="module")
def calibration(model, blocks) -> Calibration:
    return calibrate(model, find_targets(model), blocks, SETTINGS)


def assert_identical(a: Calibration, b: Calibration) -> None:
    assert (a.groups, a.counts, a.tokens, a.provenance) == (
        b.groups, b.counts, b.tokens, b.provenance,
    )  # fmt: skip
    assert a.states.keys() == b.states.keys()
    for statistic, by_layer in a.states.items():
        assert by_layer.keys() == b.states[statistic].keys()
        for key, state in by_layer.items():
            assert state.keys() == b.states[statistic][key].keys()
            for entry, tensor in state.items():
                other = b.states[statistic][key][entry]
                assert tensor.dtype == other.dtype
                assert torch.equal(tensor, other), (statistic, key, entry)


def test_round_trip_is_exact(calibration, tmp_path):
    save_calibration(calibration, tmp_path / "deep" / "c.safetensors")
    assert_identical(load_calibration(tmp_path / "deep" / "c.safetensors"), calibration)
    assert not list(tmp_path.glob("**/*.tmp"))
    assert calibration.bytes > 0


@pytest.mark.parametrize("stop", [1, 2])
def test_resumed_from_disk_equals_one_pass(model, blocks, calibration, stop, tmp_path):
    targets = find_targets(model)
    steps = calibrate_steps(model, targets, blocks, SETTINGS)
    for _ in range(stop + 1):
        partial = next(steps)
    steps.close()
    assert partial.provenance["sequences_done"] == 2 * stop
    save_calibration(partial, tmp_path / "c")
    resumed = calibrate(model, targets, blocks, SETTINGS, load_calibration(tmp_path / "c"))
    assert_identical(resumed, calibration)


def test_resuming_a_finished_calibration_changes_nothing(model, blocks, calibration, tmp_path):
    save_calibration(calibration, tmp_path / "c")
    again = load_calibration(tmp_path / "c")
    assert_identical(
        calibrate(model, find_targets(model), blocks, SETTINGS, again), calibration
    )


def test_missing_damaged_and_foreign_files(calibration, tmp_path):
    with pytest.raises(InputError, match="no file"):
        load_calibration(tmp_path / "none")
    save_calibration(calibration, tmp_path / "c")
    content = (tmp_path / "c").read_bytes()
    for size in (0, 7, 100, len(content) // 2, len(content) - 1):
        (tmp_path / "cut").write_bytes(content[:size])
        with pytest.raises(CheckpointError):
            load_calibration(tmp_path / "cut")
    for tensors, metadata in (
        ({"layer|left": torch.ones(1)}, {}),
        ({}, {"groups": {}}),
        ({}, []),
        ({"no_such|layer|sum": torch.ones(1)}, {}),
    ):
        write_tensors(tmp_path / "foreign", tensors, metadata)
        with pytest.raises(SpectrimError):
            load_calibration(tmp_path / "foreign")


def test_a_place_that_cannot_be_written(calibration, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        save_calibration(calibration, tmp_path / "file" / "c")


def test_calibrations_of_other_layers_do_not_merge(model, blocks, calibration):
    fewer = calibrate(model, find_targets(model)[:3], blocks, SETTINGS)
    with pytest.raises(CheckpointError, match="merged"):
        fewer.merge(calibration)


def test_missing_layer_and_statistic_are_named(model, blocks):
    part = calibrate(model, find_targets(model)[:1], blocks, CalibrationSettings(FORWARD))
    with pytest.raises(InputError, match="lm_head"):
        part.layer("lm_head")
    with pytest.raises(InputError, match="gradient_covariance"):
        part.layer(find_targets(model)[0].name)["gradient_covariance"]


@pytest.mark.parametrize("statistics", [FORWARD, SETTINGS.statistics], ids=["forward", "all"])
def test_a_loss_that_is_not_finite(blocks, statistics):
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match="finite"):
        calibrate(model, find_targets(model), blocks, CalibrationSettings(statistics))
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_bfloat16_models_sum_in_float64(blocks):
    model = tiny_qwen2_bias().to(torch.bfloat16)
    result = calibrate(model, find_targets(model), blocks, SETTINGS)
    for by_layer in result.states.values():
        for state in by_layer.values():
            assert all(tensor.dtype == torch.float64 for tensor in state.values())
            assert all(bool(torch.isfinite(tensor).all()) for tensor in state.values())


def test_fingerprint_sees_values_and_names(model):
    same, other = tiny_llama(), tiny_llama(seed=1)
    assert model_fingerprint(model) == model_fingerprint(same)
    assert model_fingerprint(model) != model_fingerprint(other)


def test_sampled_labels_give_the_exact_fisher_of_the_output_layer():
    """At the logits the true Fisher is E[diag p - p p^T], whatever the data's labels."""
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight.mul_(8)
    ids = tiny_tokens(40, 64)
    settings = CalibrationSettings(("gradient_covariance",), labels="sampled")
    targets = find_targets(model, include=["lm_head"])
    result = calibrate(model, targets, TokenBlocks(ids, None, "", "", 40), settings)
    summed = result.states["gradient_covariance"]["lm_head"]["sum"]
    expected = exact_fisher(model, ids)
    for project in (torch.eye(128).double(), torch.linalg.eigh(expected).eigenvectors[:, -8:]):
        got = float((project.T @ summed @ project).trace())
        want = float((project.T @ expected @ project).trace())
        assert abs(got - want) <= SAMPLED_FISHER_RELATIVE * want


@torch.no_grad()
def exact_fisher(model, ids: Tensor) -> Tensor:
    p = model(ids).logits[:, :-1].flatten(0, 1).double().softmax(-1)
    return torch.diag(p.sum(0)) - p.T @ p


def test_stored_calibrations_are_mixed_on_access(calibration, model, tmp_path):
    other = TokenBlocks(tiny_tokens(3, 12, seed=1), None, "def", "test", 3, {"length": 12})
    second = calibrate(model, find_targets(model), other, SETTINGS)
    paths = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    for part, path in zip((calibration, second), paths, strict=True):
        save_calibration(part, path)
    stored = [open_calibration(path) for path in paths]
    mixed = stored[0].interpolate(stored[1], 0.25)
    assert_identical(mixed, calibration.interpolate(second, 0.25))
    paths[1].unlink()  # nothing of it was in memory
    with pytest.raises(SpectrimError):
        next(iter(mixed.states["input_covariance"].values()))
