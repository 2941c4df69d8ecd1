"""One calibration from those of several texts or runs, and the drift from one to another.

    arithmetic          C = sum_i w_i C_i, what one pass over all tokens sums
    bures_wasserstein   C = argmin sum_i w_i d(C, C_i)^2,  d the Bures-Wasserstein distance
    log_euclidean       C = exp(sum_i w_i log C_i)

For the loss of all texts together the arithmetic mean is exact. The other two give a text of
large scale less weight, and the last one also a text unlike all others; they are of covariances
that are kept in full, with a ridge, and everything else is averaged arithmetically. Cost:
O(n^3) per covariance, and per step of the Bures-Wasserstein mean, of about ten.

R. Bhatia, T. Jain, Y. Lim, 2019, arXiv:1712.01504; V. Arsigny et al., 2007 (log-Euclidean).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from spectrim.errors import InputError
from spectrim.linalg.spd import (
    bures_wasserstein_distance,
    bures_wasserstein_mean,
    spd_exp,
    spd_log,
)
from spectrim.statistics._result import Calibration, State

Mean = Literal["arithmetic", "bures_wasserstein", "log_euclidean"]
"""The mean that `merge_calibrations` takes of covariances."""
CurvedMean = Callable[[Tensor, Tensor], Tensor]
"""Of covariances (b, n, n) with weights (b,) whose sum is 1."""
COVARIANCES = ("input_covariance", "gradient_covariance")
SQUARED_LATER = ("weight_gradients",)
"""Sums of which a method reads outer products: a weight enters by its root."""
RIDGE = 1e-6
"""Of the mean diagonal, added to every covariance before a curved mean."""
TOLERANCE = 1e-4
"""Relative change at which the iteration of the Bures-Wasserstein mean ends."""
ALIKE = "calibrate all of them with one model and one recipe, of which only the text differs"


def merge_calibrations(
    parts: Sequence[Calibration],
    weights: Sequence[float] | None = None,
    mean: Mean = "arithmetic",
) -> Calibration:
    """Return the mean of the parts per token, as sums over the tokens of all of them.

    weights: of each part, normalized; by default its tokens, so that the arithmetic mean is
    that of the pooled text. In a layer that few tokens of a part reached (an expert), the part
    weighs less. Raises InputError for parts of different layers, statistics or formats, weights
    that do not fit, or a curved mean of covariances that are not kept in full.
    """
    given = _weights(parts, weights)
    total = float(sum(part.tokens for part in parts))
    scales = [total * w / part.tokens for w, part in zip(given, parts, strict=True)]
    first = parts[0]
    counts = {
        name: sum(s * p.counts[name] for s, p in zip(scales, parts, strict=True))
        for name in first.counts
    }
    curved = _mean(mean)
    states: dict[str, dict[str, State]] = {}
    for statistic in first.states:
        states[statistic] = {}
        for key, given_states in _states_by_layer(parts, statistic):
            seen = [s * part.counts[key] for s, part in zip(scales, parts, strict=True)]
            if curved is not None and statistic in COVARIANCES:
                merged = {"sum": _curved_sum(given_states, scales, seen, curved)}
            else:
                power = 0.5 if statistic in SQUARED_LATER else 1.0
                merged = _weighted_sum(given_states, [scale**power for scale in scales])
            states[statistic][key] = merged
    origin = {"mean": mean, "weights": given, "of": [p.provenance.get("key") for p in parts]}
    provenance = first.provenance | {"key": origin}
    return Calibration(dict(first.groups), counts, states, total, provenance)


def covariance_drift(
    first: Calibration, second: Calibration, statistic: str = "input_covariance"
) -> dict[str, float]:
    """Return `d(C_1, C_2) / sqrt(tr C_1)` of each layer, or group that reads one input.

    d is the Bures-Wasserstein distance; the drift is 0 for equal covariances and not above
    about sqrt(2) for covariances of one trace. Raises InputError for calibrations of different
    layers, without the statistic, or without full covariances.
    """
    _check_alike([first, second])
    if statistic not in COVARIANCES or statistic not in first.states:
        have = ", ".join(name for name in COVARIANCES if name in first.states) or "none"
        raise InputError(
            f"no covariances '{statistic}' to compare; these calibrations have {have}"
        )
    drift = {}
    for key, states in _states_by_layer([first, second], statistic):
        counts = first.counts[key], second.counts[key]
        pair = [_full(s) / max(n, 1) for s, n in zip(states, counts, strict=True)]
        drift[key] = relative_distance(*pair)
    return drift


def relative_distance(first: Tensor, second: Tensor) -> float:
    """Return `d(X, Y) / sqrt(tr X)` of covariances (n, n); d itself for X = 0."""
    size = float(first.trace()) ** 0.5
    return float(bures_wasserstein_distance(first, second)) / (size or 1.0)


def _weighted_sum(states: list[State], scales: list[float]) -> State:
    pairs = list(zip(scales, states, strict=True))
    return {
        entry: torch.stack([scale * state[entry] for scale, state in pairs]).sum(0)
        for entry in states[0]
    }


def _curved_sum(
    states: list[State], scales: list[float], seen: list[float], curved: CurvedMean
) -> Tensor:
    """Return the sum (n, n); seen: scaled tokens of each part that reached the layer."""
    full = [_full(state) for state in states]
    reached = [i for i, count in enumerate(seen) if count > 0]
    if not reached:
        return torch.zeros_like(full[0])
    stack = torch.stack([scales[i] / seen[i] * full[i] for i in reached])
    weights = torch.tensor([seen[i] for i in reached], dtype=stack.dtype)
    return sum(seen) * curved(stack, weights / weights.sum())


def _mean(name: str) -> CurvedMean | None:
    """Return a mean of definite (b, n, n) with weights (b,); None for the arithmetic one."""
    known: dict[str, Any] = {
        "arithmetic": None,
        "bures_wasserstein": lambda c, w: bures_wasserstein_mean(
            _definite(c), w, tolerance=TOLERANCE
        ),
        "log_euclidean": lambda c, w: spd_exp(
            (w[:, None, None] * spd_log(_definite(c))).sum(0)
        ),
    }
    if name not in known:
        raise InputError(f"unknown mean '{name}'; expected one of {', '.join(known)}")
    return known[name]


def _definite(stack: Tensor) -> Tensor:
    size = stack.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    size = size.clamp_min(torch.finfo(stack.dtype).tiny / RIDGE)
    return stack + RIDGE * size * torch.eye(stack.shape[-1], dtype=stack.dtype)


def _full(state: State) -> Tensor:
    if "sum" not in state:
        raise InputError(
            "covariances that are not kept in full have no curved mean and no drift; calibrate "
            "with wide_covariances: full and no covariance_bytes"
        )
    return state["sum"]


def _weights(parts: Sequence[Calibration], weights: Sequence[float] | None) -> list[float]:
    _check_alike(parts)
    given = [float(part.tokens) for part in parts] if weights is None else list(weights)
    if len(given) != len(parts) or min(given) < 0 or not sum(given) > 0:
        raise InputError(
            f"weights {given} of {len(parts)} calibrations; expected one each, none below 0, "
            "not all of them 0"
        )
    return [weight / sum(given) for weight in given]


def _check_alike(parts: Sequence[Calibration]) -> None:
    """Raise InputError unless all have tokens and the same layers and statistics."""
    if not parts or any(part.tokens <= 0 for part in parts):
        raise InputError("expected calibrations that have seen tokens, at least one")
    known = [{name: set(s) for name, s in part.states.items()} for part in parts]
    groups = [part.groups for part in parts]
    if any(each != known[0] for each in known) or any(each != groups[0] for each in groups):
        raise InputError(f"calibrations of different layers or statistics; {ALIKE}")


def _states_by_layer(
    parts: Sequence[Calibration], statistic: str
) -> Iterator[tuple[str, list[State]]]:
    """Yield each layer or group with the states of all parts. Raises InputError."""
    for key in parts[0].states[statistic]:
        states = [part.states[statistic][key] for part in parts]
        shapes = [{entry: tensor.shape for entry, tensor in s.items()} for s in states]
        if any(shape != shapes[0] for shape in shapes):
            raise InputError(f"'{statistic}' of {key} has different formats; {ALIKE}")
        yield key, states
