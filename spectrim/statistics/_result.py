"""The value of a calibration: summed statistics with their provenance, mergeable."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from spectrim.errors import CheckpointError, InputError
from spectrim.statistics._covariance import FULL, CovarianceFormat
from spectrim.statistics._registry import STATISTICS

State = dict[str, Tensor]
"""The sums of one statistic for one layer, by name."""


@dataclass(frozen=True)
class MixedStates(Mapping[str, State]):
    """`a S + b S'` of the states S and S' of one statistic, computed at each access."""

    first: Mapping[str, State]
    second: Mapping[str, State]
    shares: tuple[float, float]

    def __getitem__(self, key: str) -> State:
        one, other = self.shares
        second = self.second[key]
        return {
            name: one * value + other * second[name] for name, value in self.first[key].items()
        }

    def __iter__(self) -> Iterator[str]:
        return iter(self.first)

    def __len__(self) -> int:
        return len(self.first)


@dataclass(repr=False)
class Calibration:
    """Sums over `tokens` tokens of the calibration text; weighted tokens count by their weight.

    groups   layer name -> name of the first layer that reads the same input tensor
    counts   layer name -> tokens that reached it (fewer than `tokens` for an expert)
    states   statistic -> layer or group name -> summed state
    provenance   model, data fingerprint, labels, versions: JSON values
    """

    groups: dict[str, str]
    counts: dict[str, float]
    states: dict[str, dict[str, State]]
    tokens: float = 0
    provenance: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        names = ", ".join(self.states)
        return f"Calibration({self.tokens:,} tokens, {len(self.counts)} layers: {names})"

    @classmethod
    def empty(
        cls,
        shapes: dict[str, tuple[int, int]],
        groups: dict[str, str],
        names: Iterable[str],
        forms: Mapping[tuple[str, str], CovarianceFormat] | None = None,
    ) -> Calibration:
        """Return sums over no tokens.

        Args:
            shapes: (out, in) of each layer's weight.
            groups: layer -> name of the first layer that reads the same input.
            names: the statistics.
            forms: (statistic, layer) -> format of covariances that are not kept in full. An
                input that several layers read is not projected by the weight of one of them.
        """
        readers = Counter(groups.values())
        states: dict[str, dict[str, State]] = {}
        for name in names:
            module = STATISTICS.get(name)
            keys = sorted(set(groups.values())) if module.SIDE == "input" else list(shapes)
            states[name] = {}
            for key in keys:
                form = (forms or {}).get((name, key), FULL)
                if form.kind == "projected" and module.SIDE == "input" and readers[key] > 1:
                    form = FULL
                given = () if form == FULL else (form,)
                states[name][key] = module.empty(shapes[key], *given)
        return cls(groups, dict.fromkeys(shapes, 0), states)

    def layer(self, name: str) -> LayerStatistics:
        if name not in self.groups:
            raise InputError(f"no statistics for layer '{name}': calibrate it first")
        return LayerStatistics(self, name)

    def merge(self, other: Calibration) -> None:
        """Add the sums of another part of the same calibration, in place."""
        if self.groups != other.groups or set(self.states) != set(other.states):
            raise CheckpointError(
                "calibrations of different layers or statistics cannot be merged"
            )
        self.tokens += other.tokens
        done = "sequences_done"
        if done in self.provenance and done in other.provenance:
            self.provenance[done] += other.provenance[done]
        for name, count in other.counts.items():
            self.counts[name] += count
        for statistic, by_layer in other.states.items():
            for key, state in by_layer.items():
                for entry, tensor in state.items():
                    self.states[statistic][key][entry] += tensor

    def interpolate(self, other: Calibration, weight: float) -> Calibration:
        """Return `(1 - weight) * self + weight * other` per token, with counts of `self`.

        States that are read on access are mixed on access.
        """
        shares = 1 - weight, weight * self.tokens / other.tokens
        states: dict[str, Any] = {}
        for statistic, by_layer in self.states.items():
            mixed = MixedStates(by_layer, other.states[statistic], shares)
            states[statistic] = dict(mixed) if isinstance(by_layer, dict) else mixed
        return Calibration(
            self.groups, dict(self.counts), states, self.tokens, dict(self.provenance)
        )

    def digest(self, layers: Iterable[str], statistics: Iterable[str]) -> str:
        """Return a hash of the diagonals of these statistics, which are matrices."""
        digest, names = hashlib.sha256(), tuple(statistics)
        for layer in map(self.layer, layers):
            for name in names:
                diagonal = layer[name].diagonal()
                digest.update(diagonal.contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()

    @property
    def bytes(self) -> int:
        return sum(
            tensor.numel() * tensor.element_size()
            for by_layer in self.states.values()
            for state in by_layer.values()
            for tensor in state.values()
        )


@dataclass(frozen=True)
class LayerStatistics:
    """The finished, per-token statistics of one layer."""

    calibration: Calibration
    layer: str

    @property
    def count(self) -> float:
        return self.calibration.counts[self.layer]

    @property
    def share(self) -> float:
        """Return the fraction of all tokens that reached this layer: 1 except for experts.

        Loss per token of the text = share * loss per token of the layer.
        """
        return self.count / max(self.calibration.tokens, 1)

    def __contains__(self, statistic: str) -> bool:
        return statistic in self.calibration.states

    def __getitem__(self, statistic: str) -> Any:
        """Return the finished statistic. Raises InputError if it was not collected."""
        if statistic not in self:
            have = ", ".join(sorted(self.calibration.states)) or "none"
            raise InputError(
                f"statistic '{statistic}' was not collected (collected: {have}); "
                "calibrate again with it"
            )
        module = STATISTICS.get(statistic)
        side = module.SIDE == "input"
        key = self.calibration.groups[self.layer] if side else self.layer
        return module.finish(self.calibration.states[statistic][key], self.count)


@dataclass(frozen=True)
class PooledStatistics(LayerStatistics):
    """One layer's statistics with the inputs of all layers of `pool` summed.

    Input statistics are per token that reached any of them; all have its width.
    """

    pool: tuple[str, ...]

    def __getitem__(self, statistic: str) -> Any:
        if statistic not in self or STATISTICS.get(statistic).SIDE != "input":
            return super().__getitem__(statistic)
        by_group = self.calibration.states[statistic]
        states = [by_group[self.calibration.groups[name]] for name in self.pool]
        total = {key: torch.stack([s[key] for s in states]).sum(0) for key in states[0]}
        count = sum(self.calibration.counts[name] for name in self.pool)
        return STATISTICS.get(statistic).finish(total, count)
