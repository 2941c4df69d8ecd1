"""Merged calibrations against pooled text and closed forms, and the drift between two."""

from __future__ import annotations

import pytest
import torch

from spectrim.calibration import CalibrationSettings, calibrate
from spectrim.data import TokenBlocks
from spectrim.errors import InputError
from spectrim.models.targets import find_targets
from spectrim.statistics import (
    STATISTICS,
    Calibration,
    CovarianceFormat,
    covariance_drift,
    merge_calibrations,
)
from tests.tiny_models import tiny_llama, tiny_mixtral, tiny_tokens
from tests.tolerances import (
    BATCH_SPLIT_RELATIVE,
    FLOAT64_RELATIVE,
    RIDGE_RELATIVE,
    ROUNDING_ABSOLUTE,
)

NAMES = ("gradient_covariance", "input_covariance", "input_mean")


def calibrated(model, rows: slice, names=NAMES) -> Calibration:
    blocks = TokenBlocks(tiny_tokens(6, 12)[rows], None, str(rows), "test", 6, {"length": 12})
    settings = CalibrationSettings(names, tokens_per_batch=24)
    return calibrate(model, find_targets(model), blocks, settings)


@pytest.fixture(scope="module")
def parts() -> list[Calibration]:
    model = tiny_llama()
    return [calibrated(model, slice(2)), calibrated(model, slice(2, 6))]


def planted(diagonal: list[float], tokens: int, reached: int | None = None) -> Calibration:
    """A layer whose inputs have a diagonal covariance, and which `reached` tokens saw."""
    count = tokens if reached is None else reached
    covariance = torch.tensor(diagonal, dtype=torch.float64).diag()
    states = {"input_covariance": {"one": {"sum": count * covariance}}}
    return Calibration({"one": "one"}, {"one": count}, states, tokens)


def inputs(calibration: Calibration) -> torch.Tensor:
    return calibration.layer("one")["input_covariance"].diagonal()


@pytest.mark.parametrize("make", [tiny_llama, tiny_mixtral])
def test_the_arithmetic_mean_is_that_of_the_pooled_text(make):
    model, names = make(), tuple(n for n in STATISTICS.names() if n != "weight_gradients")
    merged = merge_calibrations(
        [calibrated(model, slice(2), names), calibrated(model, slice(2, 6), names)]
    )
    whole = calibrated(model, slice(6), names)
    assert merged.tokens == whole.tokens
    assert merged.counts == pytest.approx(whole.counts)
    for statistic in names:
        for key, state in whole.states[statistic].items():
            for entry, tensor in state.items():
                found = merged.states[statistic][key][entry]
                size = float(tensor.abs().max())
                error = float((found - tensor).abs().max())
                assert error <= BATCH_SPLIT_RELATIVE * size, (statistic, key, entry)


def test_a_part_of_no_weight_changes_no_statistic():
    model, names = tiny_llama(), tuple(STATISTICS.names())
    first, second = calibrated(model, slice(2), names), calibrated(model, slice(2, 6), names)
    merged = merge_calibrations([first, second], [1, 0])
    layer = next(iter(first.groups))
    for statistic in names:
        found, wanted = (c.layer(layer)[statistic] for c in (merged, first))
        if isinstance(wanted, torch.Tensor):
            torch.testing.assert_close(found, wanted, rtol=FLOAT64_RELATIVE, atol=0)


@pytest.mark.parametrize(
    ("mean", "function", "inverse"),
    [
        ("arithmetic", lambda x: x, lambda x: x),
        ("bures_wasserstein", torch.sqrt, torch.square),
        ("log_euclidean", torch.log, torch.exp),
    ],
)
def test_commuting_covariances_have_means_of_their_eigenvalues(mean, function, inverse):
    first, second = planted([4.0, 1.0], 10), planted([0.5, 9.0], 30)
    found = inputs(merge_calibrations([first, second], [3.0, 1.0], mean))
    wanted = inverse(0.75 * function(inputs(first)) + 0.25 * function(inputs(second)))
    torch.testing.assert_close(found, wanted, rtol=RIDGE_RELATIVE, atol=0)


@pytest.mark.parametrize("mean", ["bures_wasserstein", "log_euclidean"])
def test_parts_count_as_often_as_their_tokens_reach_the_layer(mean):
    both = planted([4.0, 1.0], 10), planted([1.0, 9.0], 10)
    seldom = merge_calibrations([planted([4.0, 1.0], 10, 5), both[1]], None, mean)
    equal = merge_calibrations(both, [1, 2], mean)
    torch.testing.assert_close(inputs(seldom), inputs(equal), rtol=RIDGE_RELATIVE, atol=0)
    assert seldom.counts == {"one": 15}
    never = merge_calibrations([planted([4.0, 1.0], 10, 0), both[1]], None, mean)
    torch.testing.assert_close(inputs(never), inputs(both[1]), rtol=RIDGE_RELATIVE, atol=0)


def test_curved_means_lie_between_and_leave_the_rest(parts):
    arithmetic = merge_calibrations(parts)
    for mean in ("bures_wasserstein", "log_euclidean"):
        merged = merge_calibrations(parts, mean=mean)
        for key, state in merged.states["gradient_covariance"].items():
            assert (
                0
                < state["sum"].trace()
                < arithmetic.states["gradient_covariance"][key]["sum"].trace()
                * (1 + RIDGE_RELATIVE)
            )
            assert torch.linalg.eigvalsh(state["sum"])[0] > 0
        for key, state in merged.states["input_mean"].items():
            assert torch.equal(state["sum"], arithmetic.states["input_mean"][key]["sum"])
    assert merged.provenance["key"] != arithmetic.provenance["key"]


def test_drift_is_the_distance_of_gaussians(parts):
    first, second = planted([4.0, 1.0], 10), planted([0.25, 9.0], 30)
    drift = covariance_drift(first, second)
    assert drift["one"] == pytest.approx(((2 - 0.5) ** 2 + (1 - 3) ** 2) ** 0.5 / 5**0.5)
    assert covariance_drift(first, first)["one"] < ROUNDING_ABSOLUTE**0.5
    found = covariance_drift(*parts)
    assert found.keys() == set(parts[0].groups.values())
    assert min(found.values()) > 0.01
    assert covariance_drift(*parts, "gradient_covariance").keys() == set(parts[0].groups)


def test_what_does_not_fit_is_refused(parts):
    one = planted([1.0, 2.0], 10)
    with pytest.raises(InputError, match="expected one of arithmetic, bures_wasserstein"):
        merge_calibrations([one, one], mean="harmonic")
    with pytest.raises(InputError, match="of 2 calibrations; expected one each"):
        merge_calibrations([one, one], [1.0])
    with pytest.raises(InputError, match="at least one"):
        merge_calibrations([])
    with pytest.raises(InputError, match="different layers or statistics"):
        merge_calibrations([one, parts[0]])
    with pytest.raises(InputError, match="of one has different formats"):
        merge_calibrations([one, planted([1.0], 10)])
    with pytest.raises(InputError, match="these calibrations have input_covariance"):
        covariance_drift(one, one, "gradient_covariance")
    blocks = Calibration.empty(
        {"one": (4, 4)},
        {"one": "one"},
        ["input_covariance"],
        {("input_covariance", "one"): CovarianceFormat("block_diagonal", 2)},
    )
    blocks.tokens = 1
    with pytest.raises(InputError, match="not kept in full"):
        merge_calibrations([blocks, blocks], mean="log_euclidean")
