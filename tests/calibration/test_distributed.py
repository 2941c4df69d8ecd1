"""Two processes with half of the sequences each: the sums of one process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from spectrim.calibration import CalibrationSettings, calibrate
from spectrim.calibration.distributed import calibrate_distributed
from spectrim.calibration.store import load_calibration, save_calibration
from spectrim.data import TokenBlocks
from spectrim.errors import InputError
from spectrim.statistics import STATISTICS
from spectrim.surgery.experts import fused_expert_names, split_experts
from spectrim.surgery.targets import find_targets
from tests.calibration.test_blockwise import assert_close
from tests.tiny_models import tiny_llama, tiny_moe, tiny_tokens
from tests.tolerances import BATCH_SPLIT_RELATIVE

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


def in_process(rank: int, count: int, place: Path, work) -> int:
    """A copy of this process, in a gloo group that meets at a file."""
    if (child := os.fork()) != 0:
        return child
    code = 1
    try:
        meeting = f"file://{place / 'meeting'}"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=count)
        save_calibration(work(), place / f"{rank}.safetensors")
        dist.barrier()
        code = 0
    finally:
        os._exit(code)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("settings", [DATA, SAMPLED], ids=["data", "sampled"])
@pytest.mark.parametrize("name", ["llama", "moe"])
def test_two_processes(tmp_path, name, settings):
    model = built(name)
    targets = find_targets(model)
    expected = calibrate(model, targets, blocks(), settings)

    def work():
        return calibrate_distributed(model, targets, blocks(), settings)

    children = [in_process(rank, 2, tmp_path, work) for rank in range(2)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    for rank in range(2):
        found = load_calibration(tmp_path / f"{rank}.safetensors")
        assert_close(found, expected, BATCH_SPLIT_RELATIVE)


def test_without_a_group():
    model = built("llama")
    with pytest.raises(InputError, match="torchrun"):
        calibrate_distributed(model, find_targets(model), blocks(), DATA)
