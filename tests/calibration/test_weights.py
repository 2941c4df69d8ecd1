"""Weighted sequences: a weight of n is the sequence n times, in every sum over tokens."""

from __future__ import annotations

import pytest
import torch

from spectrim.calibration import CalibrationSettings, calibrate
from spectrim.calibration.blockwise import Places
from spectrim.calibration.leverage import (
    leverage_sample,
    load_sample,
    save_sample,
    sequence_scores,
    systematic_sample,
)
from spectrim.data import TokenBlocks
from spectrim.errors import CheckpointError
from spectrim.linalg.leverage import keep_probabilities
from spectrim.models.experts import fused_expert_names, split_experts
from spectrim.models.offload import Activations
from spectrim.models.targets import find_targets
from spectrim.runtime.files import write_tensors
from spectrim.statistics import STATISTICS, Calibration
from spectrim.statistics.weight_gradients import BUCKETS
from tests.calibration.test_blockwise import assert_close, streamed
from tests.calibration.walking import calibrate_blockwise
from tests.tiny_models import tiny_llama, tiny_moe, tiny_tokens
from tests.tolerances import BATCH_SPLIT_RELATIVE, FLOAT64_RELATIVE, SAMPLE_MEAN_RELATIVE

LENGTH = 12
TIMES = torch.tensor([1, 3, 2, 1])
SETTINGS = CalibrationSettings(tuple(STATISTICS.names()), tokens_per_batch=2 * LENGTH)


def rows(weights: torch.Tensor | None = None) -> TokenBlocks:
    mask = torch.arange(LENGTH) < torch.tensor([12, 7, 9, 12])[:, None]
    ids = tiny_tokens(4, LENGTH) * mask
    return TokenBlocks(ids, mask, "same", "test", 4, weights=weights)


@pytest.fixture(scope="module", params=[tiny_llama, tiny_moe])
def weighted_and_repeated(request) -> tuple[Calibration, Calibration]:
    model = request.param()
    split_experts(model, fused_expert_names(model))
    targets = find_targets(model)
    repeated = rows().select(torch.arange(4).repeat_interleave(TIMES))
    return (
        calibrate(model, targets, rows(TIMES.double()), SETTINGS),
        calibrate(model, targets, repeated, SETTINGS),
    )


@pytest.mark.parametrize("statistic", sorted(set(STATISTICS.names()) - {"weight_gradients"}))
def test_a_weight_is_a_number_of_repetitions(weighted_and_repeated, statistic):
    weighted, repeated = weighted_and_repeated
    assert weighted.tokens == repeated.tokens == 12 + 21 + 18 + 12
    assert weighted.counts == repeated.counts
    for key, state in repeated.states[statistic].items():
        for entry, tensor in state.items():
            error = float((weighted.states[statistic][key][entry] - tensor).norm())
            assert error <= BATCH_SPLIT_RELATIVE * float(tensor.norm()) + 1e-12, (key, entry)


def test_gradients_in_buckets_are_weighted_in_their_outer_product():
    """Each row has its own bucket here: sqrt(w) G, so that the Fisher sums w G G^T."""
    assert BUCKETS >= 4
    model = tiny_llama()
    settings = CalibrationSettings(("weight_gradients",))
    targets = find_targets(model)
    plain = calibrate(model, targets, rows(), settings).states["weight_gradients"]
    weighted = calibrate(model, targets, rows(TIMES.double()), settings)
    for key, state in weighted.states["weight_gradients"].items():
        expected = plain[key]["sum"][:4] * TIMES.double().sqrt()[:, None, None]
        error = float((state["sum"][:4] - expected).norm())
        assert error <= BATCH_SPLIT_RELATIVE * float(expected.norm())


def test_weights_hold_block_by_block_and_for_projected_covariances(tmp_path):
    model = tiny_llama()
    model.save_pretrained(tmp_path / "model", max_shard_size="60KB")
    settings = CalibrationSettings(
        ("gradient_covariance", "input_covariance"), "data", 2 * LENGTH, wide="projected"
    )
    expected = calibrate(model, find_targets(model), rows(TIMES.double()), settings)
    stream = streamed(tmp_path / "model")
    found = calibrate_blockwise(
        stream,
        find_targets(stream.model),
        rows(TIMES.double()),
        settings,
        Places(Activations(tmp_path / "a", 10**9)),
    )
    assert_close(found, expected, 0.0)
    repeated = rows().select(torch.arange(4).repeat_interleave(TIMES))
    again = calibrate(model, find_targets(model), repeated, settings)
    for statistic, by_layer in again.states.items():
        for key, state in by_layer.items():
            for entry, tensor in state.items():
                error = float((expected.states[statistic][key][entry] - tensor).norm())
                assert error <= BATCH_SPLIT_RELATIVE * float(tensor.norm()), (key, entry)


def test_weighted_rows_have_a_fingerprint_of_their_own():
    chosen = torch.tensor([0, 2])
    one = rows().weighted(chosen, torch.tensor([1.0, 2.0]))
    other = rows().weighted(chosen, torch.tensor([2.0, 1.0]))
    assert len({one.fingerprint, other.fingerprint, rows().fingerprint}) == 3
    assert one.fingerprint == rows().weighted(chosen, torch.tensor([1.0, 2.0])).fingerprint
    assert one.mask is not None
    assert torch.equal(one.mask, rows().mask[chosen])


def test_systematic_sampling_draws_the_stated_number_with_the_stated_probability():
    scores = torch.tensor([5.0, 1.0, 1.0, 2.0, 0.5, 3.0, 20.0, 1.0], dtype=torch.float64)
    probabilities = keep_probabilities(scores, 4)
    drawn = torch.zeros(8)
    trials = 4000
    for seed in range(trials):
        chosen = systematic_sample(probabilities, torch.Generator().manual_seed(seed))
        assert len(chosen) == 4
        drawn[chosen] += 1
    assert drawn[6] == trials, "a row of probability one is always kept"
    error = (drawn / trials - probabilities).abs().max()
    assert float(error) < SAMPLE_MEAN_RELATIVE


@pytest.fixture(scope="module")
def candidates() -> TokenBlocks:
    """Rows of few different tokens, and two rows of others."""
    ids = tiny_tokens(24, LENGTH, seed=5) % 6 + 10
    ids[[7, 19]] = tiny_tokens(2, LENGTH, seed=6) % 40 + 60
    return TokenBlocks(ids, None, "many", "test", 24)


def test_scores_sum_to_the_rank_and_find_the_rare_rows(candidates):
    scores = sequence_scores(tiny_llama(), candidates, 5 * LENGTH)
    assert float(scores.sum()) <= 32
    assert set(scores.topk(2).indices.tolist()) == {7, 19}
    again = sequence_scores(tiny_llama(), candidates, 24 * LENGTH)
    assert torch.allclose(again, scores, rtol=1e-4)


def test_padding_counts_nothing_in_the_scores(candidates):
    model, ids = tiny_llama(), candidates.ids.clone()
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, 8:] = False
    short = TokenBlocks(ids[:, :8], None, "", "", 24)
    padded = TokenBlocks(ids, mask, "", "", 24)
    found = sequence_scores(model, padded, 24 * LENGTH)
    assert torch.allclose(found, sequence_scores(model, short, 24 * 8), rtol=1e-4)


def test_a_sample_counts_as_many_tokens_as_all_candidates(candidates):
    model = tiny_llama()
    chosen, weights = leverage_sample(model, candidates, 6, 5 * LENGTH)
    assert len(chosen) == 6
    assert chosen.equal(chosen.sort().values)
    assert float(weights.sum()) * LENGTH == pytest.approx(24 * LENGTH, rel=FLOAT64_RELATIVE)
    again = leverage_sample(model, candidates, 6, 5 * LENGTH)
    assert again[0].equal(chosen)
    other = leverage_sample(model, candidates, 6, 5 * LENGTH, seed=1)
    assert not other[0].equal(chosen)


def test_weighted_covariances_estimate_those_of_all_candidates(candidates):
    """The mean over many samples is the whole, up to the ratio's bias of order 1 / count."""
    model = tiny_llama()
    targets = find_targets(model, ["layers.0.mlp.gate_proj"])
    settings = CalibrationSettings(("input_covariance",), tokens_per_batch=24 * LENGTH)
    name = targets[0].name
    whole = calibrate(model, targets, candidates, settings).layer(name)["input_covariance"]
    mean = torch.zeros_like(whole)
    for seed in range(60):
        chosen = leverage_sample(model, candidates, 8, 24 * LENGTH, seed)
        part = calibrate(model, targets, candidates.weighted(*chosen), settings)
        assert part.tokens == pytest.approx(24 * LENGTH)
        mean += part.layer(name)["input_covariance"] / 60
    assert float((mean - whole).norm()) < 0.05 * float(whole.norm())


def test_a_foreign_file_is_no_sample(tmp_path):
    sample = torch.tensor([1, 4]), torch.tensor([1.0, 2.0], dtype=torch.float64)
    save_sample(sample, tmp_path / "sample.safetensors")
    found = load_sample(tmp_path / "sample.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(found, sample, strict=True))
    write_tensors(tmp_path / "other.safetensors", {"x": torch.zeros(1)}, {})
    with pytest.raises(CheckpointError, match="sample"):
        load_sample(tmp_path / "other.safetensors")
