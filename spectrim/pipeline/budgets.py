"""Parts of a recipe that change what a budget is spent on: time, many sizes, whole experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from spectrim.errors import InputError

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=_STRICT)
class LatencyRecipe:
    """A budget of measured time in place of one of weights."""

    budget: float = Field(default=0.7, gt=0, le=1, description="Fraction of the dense time.")
    tokens: int = Field(default=1, ge=1, description="Tokens per forward pass.")


@dataclass(frozen=True, config=_STRICT)
class ElasticRecipe:
    """One checkpoint of all sizes from `smallest` to `largest`, cut when it is loaded."""

    smallest: float = Field(default=0.4, gt=0, le=1, description="Fraction of the weights.")
    largest: float = Field(default=0.9, gt=0, le=1, description="Fraction of the weights.")

    def __post_init__(self) -> None:
        if self.smallest >= self.largest:
            raise ValueError(
                f"the smallest size ({self.smallest:g}) must be below the largest "
                f"({self.largest:g})"
            )


@dataclass(frozen=True, config=_STRICT)
class ExpertRecipe:
    """Whole experts are removed under the same budget as ranks.

    uniform: the same number from every block; by default as the order's source does.
    """

    order: str = Field(default="predicted_loss", description="Which go first; `spectrim ls`.")
    order_options: dict[str, Any] = Field(default_factory=dict)
    uniform: bool | None = None
    cut_ranks: bool = Field(
        default=True, description="Layers that are left lose ranks too; false: stay dense."
    )
    tokens: int | None = Field(default=None, ge=2, description="To price experts on.")


def for_all_sizes(given: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a recipe's `values` that the option `elastic` sets or adapts.

    Of refinements that were not asked for by name, those that train all sizes are left, if
    there are any; components are quantized one by one, as plain factors, unless another way was
    asked for. Raises InputError for an unreadable range.
    """
    found: dict[str, Any] = {"elastic": parse_range(given["elastic"])}
    if not given["refine"]:
        found["refinement"] = of_all_sizes(values["refinement"])
    if values["quantization"] is not None:
        found["quantization"] = {"backend": "rtn"} | values["quantization"]
        found["layer"] = given["layer"] or "lowrank"
    return found


def of_all_sizes(refinements: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the refinements that train all sizes of an elastic model, or all if none does."""
    from spectrim.refinement import REFINEMENTS

    found = [r for r in refinements if hasattr(REFINEMENTS.get(r["name"]), "ALL_SIZES")]
    return found or refinements


def parse_range(text: str) -> dict[str, Any]:
    """Return the fields of an `ElasticRecipe` written as `0.4..0.9`. Raises InputError."""
    low, dots, high = text.partition("..")
    try:
        values = float(low), float(high)
    except ValueError:
        dots = ""
    if not dots:
        raise InputError(
            f"--elastic {text}: expected the smallest and the largest fraction of the weights, "
            "like 0.4..0.9"
        )
    return {"smallest": values[0], "largest": values[1]}
