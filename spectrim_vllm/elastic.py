"""One size of a checkpoint that holds several: `elastic` in its config, with the size to serve.

    {"kind": "pivoted", "budget": 0.6, "layers": [{"name": ..., "shape": [out, in], "first": 24,
     "components": 96, "has_dense": false}, ...], "steps": [[0, 25], [3, 17], ...], ...}

Steps (layer, its new rank, 0 for dense) are taken in order where they fit the budget, then
single ranks. A layer is served as plain factors, the first rows of its tensor `components`
(k, out + in), or dense.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

_COSTS: Mapping[str, Callable[[int, int, int], int]] = {
    "lowrank": lambda out, width, rank: rank * (out + width),
    "pivoted": lambda out, width, rank: rank * (out + width - rank),
}
"""Weights that a rank counts as, by the kind that the sizes were planned for."""

_ROUNDING = 1e-12


@dataclass(frozen=True)
class Stored:
    """What the file holds of a layer: `components` rows, and a dense weight or none."""

    components: int
    has_dense: bool

    def shapes(self, shape: tuple[int, int]) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the tensors in the checkpoint by name."""
        dense = {"weight": shape} if self.has_dense else {}
        return {"components": (self.components, sum(shape)), **dense}

    def cut(self, name: str, tensor: Tensor, rank: int, out: int) -> dict[str, Tensor]:
        """Return the tensors that are multiplied with at `rank`, 0 for dense."""
        if name == "weight":
            return {} if rank else {"weight": tensor}
        rows = tensor[: rank or self.components]
        left, right = rows[:, :out].T, rows[:, out:]
        if rank:
            return {"right.weight": right, "left.weight": left}
        if self.has_dense:
            return {}
        return {"weight": (left.float() @ right.float()).to(tensor.dtype)}


def chosen_ranks(elastic: Mapping[str, Any]) -> dict[str, tuple[int, Stored]]:
    """Return rank (0 for dense) and stored tensors of each layer at the config's budget.

    Raises:
        ValueError: The kind is unknown, or the budget is none of the checkpoint's sizes.
    """
    layers, kind = elastic["layers"], elastic["kind"]
    if "quantizer" in elastic:
        raise ValueError("it holds quantized sizes; write one by `spectrim export --budget`")
    if kind not in _COSTS:
        raise ValueError(f"sizes of kind {kind!r}, this plug-in reads {', '.join(_COSTS)}")
    budget = elastic["largest"] if elastic["budget"] is None else elastic["budget"]
    if not elastic["smallest"] <= budget <= elastic["largest"]:
        raise ValueError(
            f"budget {budget}, the checkpoint has sizes from {elastic['smallest']} to "
            f"{elastic['largest']}"
        )

    def cost(index: int, rank: int) -> int:
        out, width = layers[index]["shape"]
        return _COSTS[kind](out, width, rank) if rank else out * width

    ranks = [layer["first"] for layer in layers]
    whole = sum(cost(i, 0) for i in range(len(layers)))
    left = int(budget * whole * (1 + _ROUNDING) + 1e-9)
    left -= sum(cost(i, rank) for i, rank in enumerate(ranks))
    stopped: dict[int, None] = {}
    for index, rank in elastic["steps"]:
        extra = cost(index, rank) - cost(index, ranks[index])
        if extra > left:
            stopped[index] = None
        elif index not in stopped:
            ranks[index], left = rank, left - extra
    for index in stopped:
        before = ranks[index]
        limit = min(cost(index, before) + left, cost(index, 0) - 1)
        more = range(before, layers[index]["components"] + 1, elastic["multiple"])
        ranks[index] = max((r for r in more if cost(index, r) <= limit), default=before)
        left -= cost(index, ranks[index]) - cost(index, before)
    return {
        layer["name"]: (rank, Stored(layer["components"], layer["has_dense"]))
        for layer, rank in zip(layers, ranks, strict=True)
        if layer["components"]
    }
