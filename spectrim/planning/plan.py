"""A plan: one rank per layer, readable, editable, and accepted by `compress`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from spectrim.errors import InputError
from spectrim.models.expert_removal import ExpertRemoval
from spectrim.planning.display import html_table, plan_line
from spectrim.runtime.files import is_file, read_mapping, write_text

_STRICT = ConfigDict(extra="forbid")


def _refuse_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(f"expected a number, got {str(value).lower()}")
    return value


_Whole = Annotated[int, BeforeValidator(_refuse_bool)]
_Number = Annotated[float, BeforeValidator(_refuse_bool)]
SHARED = "shared_basis"
"""The layer type of the members of a group, whatever the plan's kind for single layers."""


@dataclass(frozen=True, config=_STRICT)
class LayerPlan:
    """The rank of one layer; None leaves it dense.

    Attributes:
        predicted_loss: of this layer alone, nats per token.
        members: for a group of layers on one basis, its module names and the rows that each
            has of the stacked weight, in order; the first holds the basis.
    """

    shape: tuple[_Whole, _Whole]
    rank: Annotated[_Whole, Field(ge=1)] | None = None
    predicted_loss: _Number = 0.0
    members: dict[str, Annotated[_Whole, Field(ge=1)]] = Field(default_factory=dict)

    def __post_init__(self) -> None:
        if min(self.shape) < 1:
            raise ValueError(f"shape {self.shape} must be positive")
        if self.rank is not None and self.rank > min(self.shape):
            raise ValueError(
                f"rank {self.rank} is above {min(self.shape)}, the most for shape {self.shape}"
            )
        if self.members and (len(self.members) < 2 or self.rows != self.shape[0]):
            raise ValueError(
                f"members have {self.rows} rows, expected two or more members with "
                f"{self.shape[0]}, the rows of shape {self.shape}"
            )

    @property
    def rows(self) -> int:
        return sum(self.members.values())


@dataclass(frozen=True, config=_STRICT)
class ExpertPlan:
    """The experts that are removed from one block, whose layers the plan does not have.

    Attributes:
        router: name of the module that chooses among the experts.
        count: experts before.
        predicted_loss: of removing these experts alone, nats per token.
        weights: of the removed experts' layers, dense.
    """

    router: str
    count: Annotated[_Whole, Field(ge=2)]
    removed: tuple[Annotated[_Whole, Field(ge=0)], ...]
    predicted_loss: _Number = 0.0
    weights: Annotated[_Whole, Field(ge=0)] = 0

    def __post_init__(self) -> None:
        if len(set(self.removed)) != len(self.removed) or len(self.removed) >= self.count:
            raise ValueError(
                f"removed {self.removed} must be some of {self.count} experts, once"
            )
        if self.removed and max(self.removed) >= self.count:
            raise ValueError(f"expert {max(self.removed)} is not one of {self.count} experts")


@dataclass(frozen=True, config=_STRICT, repr=False)
class Plan:
    """The ranks of all layers.

    Attributes:
        kept: fraction of the layers' weights that the plan stores.
        predicted_loss: of the whole model, nats per token, corrected for interactions of
            layers; None if the statistics for it are missing or the layer type is lossy.
        experts: experts that are removed, by the name of the experts' module.
    """

    method: str
    allocation: str
    layer: str
    budget: _Number
    kept: _Number
    predicted_loss: _Number | None
    layers: dict[str, LayerPlan]
    provenance: dict[str, Any] = Field(default_factory=dict)
    layer_options: dict[str, Any] = Field(default_factory=dict)
    experts: dict[str, ExpertPlan] = Field(default_factory=dict)
    format: Literal["spectrim-plan-1"] = "spectrim-plan-1"

    def __post_init__(self) -> None:
        if twice := sorted(n for n, count in Counter(self.modules).items() if count > 1):
            raise ValueError(
                f"'{twice[0]}' is planned more than once; list each layer alone or in one group"
            )

    def to_dict(self) -> dict[str, Any]:
        values = TypeAdapter(Plan).dump_python(self, mode="json")
        for layer in values["layers"].values():
            if not layer["members"]:
                del layer["members"]
        if not self.experts:
            del values["experts"]
        return values

    @property
    def summed_loss(self) -> float:
        """Return the predicted losses of layers and experts, before interactions."""
        layers = sum(layer.predicted_loss for layer in self.layers.values())
        return layers + sum(block.predicted_loss for block in self.experts.values())

    @property
    def removals(self) -> list[ExpertRemoval]:
        """Return the experts to remove from the model."""
        return [ExpertRemoval(n, e.router, e.removed) for n, e in self.experts.items()]

    @property
    def modules(self) -> list[str]:
        """Return the names of all planned modules, including those of groups."""
        return [module for name in self.layers for module in self.members(name)]

    def members(self, name: str) -> tuple[str, ...]:
        """Return the modules of one of `layers`: a group's members, else the name itself."""
        return tuple(self.layers[name].members) or (name,)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False, default_flow_style=None)

    @property
    def _line(self) -> str:
        factored = sum(len(self.members(name)) for name in self.ranks)
        loss = self.predicted_loss
        removed = sum(len(block.removed) for block in self.experts.values())
        line = plan_line(self.method, self.kept, loss, factored, len(self.modules))
        return line + (f", {removed} experts removed" if removed else "")

    def __repr__(self) -> str:
        return f"Plan({self._line})"

    def _repr_html_(self) -> str:
        rows = [
            (
                name,
                f"{layer.shape[0]} x {layer.shape[1]}",
                "dense" if layer.rank is None else str(layer.rank),
                f"{layer.predicted_loss:.3g}",
            )
            for name, layer in self.layers.items()
        ]
        head = ("layer", "shape", "rank", "predicted loss, nats")
        return html_table(f"Plan: {self._line}", head, rows)

    @property
    def ranks(self) -> dict[str, int]:
        """Return the ranks of the layers that are not left dense."""
        return {n: layer.rank for n, layer in self.layers.items() if layer.rank is not None}


def save_plan(plan: Plan, path: Path) -> None:
    """Write JSON for `.json`, else YAML. Raises InputError if it cannot be written."""
    as_json = path.suffix == ".json"
    write_text(path, json.dumps(plan.to_dict(), indent=1) + "\n" if as_json else plan.to_yaml())


def load_plan(path: Path) -> Plan:
    """Load a plan. Raises InputError that names each wrong field."""
    if not is_file(path):
        raise InputError(
            f"no plan file {path}; create one with `spectrim plan MODEL -o {path}`"
        )
    values = read_mapping(path)
    try:
        return TypeAdapter(Plan).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "file"
        raise InputError(f"{path}: {place}: {first['msg']}") from error
