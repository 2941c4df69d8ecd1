"""The factors of every layer with predicted loss curves: one factorization, many cuts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from spectrim.errors import CheckpointError
from spectrim.linalg.truncated import Factors
from spectrim.planning.experts import ExpertCurve
from spectrim.runtime.files import read_tensors, write_tensors

_BY_LAYER = ("shapes", "factors", "curves", "first_order_effects", "groups", "shares")
"""Fields of a decomposition that have an entry for each layer or group, or for some."""


@dataclass(frozen=True)
class JointCorrection:
    """A map from summed to measured loss of full-model plans, by (summed, measured) pairs.

    Layers are priced one at a time; together they cost more (or, far out, less). Between
    the pairs the ratio is interpolated in log-log; below them, and above a single pair, it
    keeps the first ratio.
    """

    pairs: tuple[tuple[float, float], ...] = ()

    def __call__(self, summed: float) -> float:
        if not self.pairs or summed <= 0:
            return max(summed, 0.0)
        x = np.log([pair[0] for pair in self.pairs])
        y = np.log([pair[1] for pair in self.pairs])
        at = np.log(summed)
        if at <= x[0] or len(x) == 1:
            return float(summed * np.exp(y[0] - x[0]))
        if at >= x[-1]:
            slope = np.clip((y[-1] - y[-2]) / (x[-1] - x[-2]), 0.0, 1.5)
            return float(np.exp(y[-1] + slope * (at - x[-1])))
        return float(np.exp(np.interp(at, x, y)))


@dataclass(repr=False)
class Decomposition:
    """Factors and loss curves by layer name; curves[name][r] is the predicted loss at rank r.

    Attributes:
        units: "nats per token", or "own" without the statistics for nats.
        first_order_effects: effect on the loss of dropping each component (k,), nats
            per token; empty without the statistic `mean_gradient`.
        groups: by the name of a group of layers on one basis, its module names and the rows
            that each has of the group's `left`, in order.
        shares: the part of a group's curve that each member has, (members, k + 1).
        experts: what removing experts would cost, by the name of the experts' module.
        rounding: rounding[name][r] is the loss that quantizing rank r adds, at 0 the dense
            layer; computed for one recipe (`rounded_for`), not saved.
    """

    method: str
    shapes: dict[str, tuple[int, int]]
    factors: dict[str, Factors]
    curves: dict[str, Tensor]
    units: str = "nats per token"
    correction: JointCorrection = field(default_factory=JointCorrection)
    provenance: dict[str, Any] = field(default_factory=dict)
    first_order_effects: dict[str, Tensor] = field(default_factory=dict)
    groups: dict[str, dict[str, int]] = field(default_factory=dict)
    shares: dict[str, Tensor] = field(default_factory=dict)
    experts: dict[str, ExpertCurve] = field(default_factory=dict)
    rounding: dict[str, Tensor] = field(default_factory=dict)
    rounded_for: str = ""

    def __repr__(self) -> str:
        return f"Decomposition({self.method}, {len(self.shapes)} layers, {self.units})"

    def expand_groups(
        self, ranks: Mapping[str, int]
    ) -> tuple[dict[str, Factors], dict[str, int]]:
        """Return factors and ranks by module, with groups split into their members."""
        factors: dict[str, Factors] = {}
        by_module: dict[str, int] = {}
        for name, rank in ranks.items():
            whole = self.factors[name]
            parts = whole.split(self.groups[name]) if name in self.groups else {name: whole}
            factors |= parts
            by_module |= dict.fromkeys(parts, rank)
        return factors, by_module

    def select(self, names: Iterable[str]) -> Decomposition:
        """Return the decomposition with these layers and groups alone, sharing the tensors."""
        wanted = list(names)
        parts: dict[str, Any] = {}
        for entry in _BY_LAYER:
            values = getattr(self, entry)
            parts[entry] = {name: values[name] for name in wanted if name in values}
        return replace(self, **parts)

    def update(self, other: Decomposition) -> None:
        """Add the layers and groups of another part of the same decomposition, in place."""
        for name in _BY_LAYER:
            getattr(self, name).update(getattr(other, name))

    def spectrum(self, name: str) -> Tensor:
        """Return the singular values (k,) of the whitened weight."""
        return self.factors[name].spectrum

    @property
    def weights(self) -> int:
        """Return the weights of the dense layers."""
        return sum(out * inner for out, inner in self.shapes.values())

    def save(self, path: Path) -> None:
        """Write one safetensors file. Raises InputError if it cannot be written."""
        metadata = {
            "method": self.method,
            "shapes": self.shapes,
            "units": self.units,
            "correction": self.correction.pairs,
            "provenance": self.provenance,
            "groups": self.groups,
            "experts": {name: asdict(curve) for name, curve in self.experts.items()},
        }
        write_tensors(path, self.tensors(), metadata)

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors, under the names that `from_tensors` reads."""
        tensors = {f"{name}|curve": curve for name, curve in self.curves.items()}
        tensors |= {
            f"{name}|signed": effects for name, effects in self.first_order_effects.items()
        }
        tensors |= {f"{name}|shares": shares for name, shares in self.shares.items()}
        for name, factors in self.factors.items():
            tensors[f"{name}|left"] = factors.left
            tensors[f"{name}|right"] = factors.right
            tensors[f"{name}|spectrum"] = factors.spectrum
            if factors.bias_shift is not None:
                tensors[f"{name}|offset"] = factors.bias_shift
        return tensors

    def from_tensors(
        self,
        shapes: dict[str, tuple[int, int]],
        tensors: Mapping[str, Tensor],
        groups: dict[str, dict[str, int]],
    ) -> Decomposition:
        """Return the decomposition of these layers and groups.

        Raises KeyError for a missing tensor.
        """
        factors = {
            name: Factors(
                tensors[f"{name}|left"],
                tensors[f"{name}|right"],
                tensors[f"{name}|spectrum"],
                tensors.get(f"{name}|offset"),
            )
            for name in shapes
        }
        curves = {name: tensors[f"{name}|curve"] for name in shapes}
        signed = {n: tensors[f"{n}|signed"] for n in shapes if f"{n}|signed" in tensors}
        shares = {n: tensors[f"{n}|shares"] for n in shapes if f"{n}|shares" in tensors}
        return replace(
            self,
            shares=shares,
            shapes=shapes,
            factors=factors,
            curves=curves,
            first_order_effects=signed,
            groups=groups,
        )

    @classmethod
    def load(cls, path: Path) -> Decomposition:
        """Load a file. Raises InputError if it is missing, CheckpointError if it is damaged."""
        tensors, metadata = read_tensors(path)
        try:
            shapes = {name: (int(o), int(i)) for name, (o, i) in metadata["shapes"].items()}
            pairs = tuple((a, b) for a, b in metadata["correction"])
            empty = cls(metadata["method"], {}, {}, {}, metadata["units"])
            empty.correction, empty.provenance = JointCorrection(pairs), metadata["provenance"]
            empty.experts = {
                name: ExpertCurve(
                    c["router"], c["count"], tuple(c["order"]), tuple(c["losses"])
                )
                for name, c in metadata.get("experts", {}).items()
            }
            groups = _checked_groups(metadata.get("groups", {}), shapes)
            return empty.from_tensors(shapes, tensors, groups)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{path} is not a decomposition: {error}") from error


def _checked_groups(
    groups: dict[str, dict[str, int]], shapes: dict[str, tuple[int, int]]
) -> dict[str, dict[str, int]]:
    """Raise ValueError if the members of a group do not have the rows of its shape."""
    for name, members in groups.items():
        if sum(members.values()) != shapes[name][0]:
            raise ValueError(f"the members of {name} do not have {shapes[name][0]} rows")
    return groups
