"""Processes with a part of the sequences each: the sums of one process."""

from __future__ import annotations

import pytest
import torch

from spectrim.calibration import CalibrationSettings, calibrate
from spectrim.calibration.distributed import calibrate_distributed, shard_model
from spectrim.data import TokenBlocks
from spectrim.errors import InputError
from spectrim.models.experts import fused_expert_names, split_experts
from spectrim.models.targets import find_targets
from spectrim.statistics import STATISTICS
from tests.calibration.test_blockwise import assert_close
from tests.forks import in_processes, needs_fork
from tests.tiny_models import tiny_llama, tiny_moe, tiny_tokens
from tests.tolerances import BATCH_SPLIT_RELATIVE, PROCESSES_RELATIVE

LENGTH = 12
DATA = CalibrationSettings(tuple(STATISTICS.names()), tokens_per_batch=2 * LENGTH)
SAMPLED = CalibrationSettings(
    ("gradient_covariance", "input_covariance"), labels="sampled", tokens_per_batch=2 * LENGTH
)


def blocks() -> TokenBlocks:
    mask = torch.arange(LENGTH) < torch.tensor([12, 7, 9, 12, 5])[:, None]
    return TokenBlocks(tiny_tokens(5, LENGTH), mask, "same", "test", 5)


def built(name: str):
    model = {"llama": tiny_llama, "moe": tiny_moe}[name]()
    split_experts(model, fused_expert_names(model))
    return model


@pytest.mark.few(1)
@needs_fork
@pytest.mark.parametrize("settings", [DATA, SAMPLED], ids=["data", "sampled"])
@pytest.mark.parametrize("name", ["llama", "moe"])
def test_two_processes(tmp_path, name, settings):
    model = built(name)
    targets = find_targets(model)
    expected = calibrate(model, targets, blocks(), settings)

    def work():
        return calibrate_distributed(model, targets, blocks(), settings)

    for found in in_processes(tmp_path / "two", work):
        assert_close(found, expected, BATCH_SPLIT_RELATIVE)


@needs_fork
def test_only_the_order_of_additions_differs(tmp_path):
    """In float64; three processes, of which the last has nothing to do in the second round."""
    model = built("llama").double()
    targets = find_targets(model)
    expected = calibrate(model, targets, blocks(), DATA)

    def work():
        return calibrate_distributed(model, targets, blocks(), DATA)

    for found in in_processes(tmp_path / "three", work, 3):
        assert_close(found, expected, PROCESSES_RELATIVE)


@pytest.mark.few(1)
@needs_fork
@pytest.mark.parametrize("name", ["llama", "moe"])
def test_a_model_in_shards(tmp_path, name):
    """FSDP2: hooks see whole inputs, outputs and gradients; the passes are uneven."""
    model = built(name)
    targets = find_targets(model)
    expected = calibrate(model, targets, blocks(), DATA)

    def work():
        half = next(shard_model(model).parameters()).to_local().numel()
        return half, calibrate_distributed(model, targets, blocks(), DATA)

    whole = next(model.parameters()).numel()
    for half, found in in_processes(tmp_path / "two", work):
        assert half == whole / 2
        assert_close(found, expected, BATCH_SPLIT_RELATIVE)


@needs_fork
def test_a_model_in_shards_whose_first_block_has_no_targets(tmp_path):
    """The process without a batch exchanges the same weights as the others."""
    model = built("llama")
    targets = find_targets(model, include=("layers.1.mlp",))
    expected = calibrate(model, targets, blocks(), DATA)

    def work():
        return calibrate_distributed(shard_model(model), targets, blocks(), DATA)

    for found in in_processes(tmp_path / "two", work):
        assert_close(found, expected, BATCH_SPLIT_RELATIVE)


def test_without_a_group():
    model = built("llama")
    with pytest.raises(InputError, match="torchrun"):
        calibrate_distributed(model, find_targets(model), blocks(), DATA)
    with pytest.raises(InputError, match="torchrun"):
        shard_model(model)
