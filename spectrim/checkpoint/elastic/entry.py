"""Build, check and read the field `elastic` of a checkpoint's config.

    {"kind": "pivoted", "smallest": 0.4, "largest": 0.9, "multiple": 1, "budget": null,
     "layers": [{"name": ..., "shape": [out, in], "first": 24, "components": 96,
                 "has_dense": false}, ...],
     "steps": [[0, 25], [3, 17], ...], "losses": [0.81, 0.79, ...], "other_weights": 1234}

`steps` are (number of the layer, its new rank, 0 for dense) from the smallest size upward;
`budget` is the size to load where nothing else is asked for, None for the largest;
`other_weights` counts the numbers that are stored outside of `layers`. Quantized components
have `"quantizer": {"options": {...}, "dtype": "float32"}`: the options of `rtn`, and the dtype
whose numbers weights are counted in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from spectrim.allocation import DENSE, NestedLayer, NestedSizes, Storage
from spectrim.errors import CheckpointError, InputError
from spectrim.layers.quantized import ROW_QUANTIZER, quantizer_class, storage_in
from spectrim.layers.quantized.rtn import Options

KINDS = ("lowrank", "pivoted")
"""Layer types that are made of any factors of their rank."""
_FIELDS = {
    "kind",
    "smallest",
    "largest",
    "multiple",
    "budget",
    "layers",
    "steps",
    "losses",
    "other_weights",
}
_LAYER_FIELDS = {"name", "shape", "first", "components", "has_dense"}
_DTYPES = ("float32", "bfloat16", "float16")
_DIGITS = 5


def elastic_entry(sizes: NestedSizes, other_weights: int) -> dict[str, Any]:
    """Return the entry of `sizes`; losses are rounded."""
    layers = [
        {
            "name": name,
            "shape": list(layer.shape),
            "first": layer.first,
            "components": layer.components,
            "has_dense": layer.has_dense,
        }
        for name, layer in sizes.layers.items()
    ]
    return {
        "kind": sizes.kind,
        "smallest": sizes.smallest,
        "largest": sizes.largest,
        "multiple": sizes.multiple,
        "budget": None,
        "layers": layers,
        "steps": [list(step) for step in sizes.steps],
        "losses": [float(f"{loss:.{_DIGITS}g}") for loss in sizes.losses],
        "other_weights": other_weights,
    }


def rounding_of(entry: Mapping[str, Any]) -> Options | None:
    """Return the options that components are quantized by, None where they are not."""
    stated = entry.get("quantizer")
    return None if stated is None else quantizer_class(ROW_QUANTIZER).parsed(stated["options"])


def sizes_of(entry: Mapping[str, Any]) -> NestedSizes:
    """Return the sizes of an entry that was checked."""
    layers = {
        values["name"]: NestedLayer(
            (values["shape"][0], values["shape"][1]),
            values["first"],
            values["components"],
            values["has_dense"],
        )
        for values in entry["layers"]
    }
    return NestedSizes(
        entry["kind"],
        entry["smallest"],
        entry["largest"],
        entry["multiple"],
        layers,
        tuple((index, rank) for index, rank in entry["steps"]),
        tuple(entry["losses"]),
        _storage(entry),
    )


def _storage(entry: Mapping[str, Any]) -> Storage | None:
    stated = entry.get("quantizer")
    return (
        None
        if stated is None
        else storage_in(ROW_QUANTIZER, stated["options"], stated["dtype"])
    )


def check_elastic(entry: object) -> None:
    """Raise CheckpointError unless `entry` is None or a whole, consistent entry."""
    if entry is None:
        return
    if not isinstance(entry, dict) or set(entry) - {"quantizer"} != _FIELDS:
        raise CheckpointError(f"'elastic' is {entry!r:.80}, expected {sorted(_FIELDS)}")
    if entry["kind"] not in KINDS:
        raise CheckpointError(
            f"'elastic' has kind {entry['kind']!r:.40}, expected {' or '.join(KINDS)}"
        )
    _check_quantizer(entry)
    small, large = entry["smallest"], entry["largest"]
    if not (_is_number(small) and _is_number(large) and 0 < small < large <= 1):
        raise CheckpointError(
            f"'elastic' runs from {small!r:.40} to {large!r:.40}, expected fractions in order"
        )
    budget = entry["budget"]
    if budget is not None and not (_is_number(budget) and small <= budget <= large):
        raise CheckpointError(
            f"'elastic' has budget {budget!r:.40}, expected null or {small:g} to {large:g}"
        )
    if not (_is_count(entry["multiple"], 1) and _is_count(entry["other_weights"], 0)):
        raise CheckpointError("'elastic' has a multiple or a count that is no whole number")
    if not isinstance(entry["layers"], list):
        raise CheckpointError("'elastic' has layers that are no list")
    for layer in entry["layers"]:
        _check_layer(layer)
    if len({layer["name"] for layer in entry["layers"]}) != len(entry["layers"]):
        raise CheckpointError("'elastic' names a layer twice")
    _check_steps(entry)


def _check_quantizer(entry: Mapping[str, Any]) -> None:
    if "quantizer" not in entry:
        return
    stated = entry["quantizer"]
    known = isinstance(stated, dict) and set(stated) == {"options", "dtype"}
    if not known or stated["dtype"] not in _DTYPES or not isinstance(stated["options"], dict):
        raise CheckpointError(
            f"'elastic' has the quantizer {stated!r:.80}, expected options and a dtype"
        )
    if entry["kind"] != "lowrank":
        raise CheckpointError(f"'elastic' has quantized layers of kind {entry['kind']}")
    try:
        quantizer_class(ROW_QUANTIZER).parsed(stated["options"])
    except InputError as error:
        raise CheckpointError(f"'elastic' has a quantizer: {error}") from None


def _check_layer(layer: object) -> None:
    if not isinstance(layer, dict) or set(layer) != _LAYER_FIELDS:
        raise CheckpointError(
            f"an elastic layer is {layer!r:.80}, expected {sorted(_LAYER_FIELDS)}"
        )
    if not isinstance(name := layer["name"], str):
        raise CheckpointError(f"an elastic layer is named {name!r:.80}")
    shape = layer["shape"]
    pair = isinstance(shape, list) and len(shape) == 2
    if not (pair and all(_is_count(n, 1) for n in shape)):
        raise CheckpointError(f"elastic layer {name}: shape is {shape!r:.80}")
    if not _is_count(layer["components"], 0) or layer["components"] > min(shape):
        raise CheckpointError(
            f"elastic layer {name}: {layer['components']!r:.40} components, expected at most "
            f"{min(shape)}"
        )
    if not isinstance(layer["has_dense"], bool):
        raise CheckpointError(f"elastic layer {name}: has_dense is no truth value")
    _check_rank(layer, layer["first"])


def _check_rank(layer: Mapping[str, Any], rank: object) -> None:
    """Raise CheckpointError for a rank that the stored tensors do not give."""
    whole = layer["has_dense"] or layer["components"] == min(layer["shape"])
    if not _is_count(rank, 0 if whole else 1) or rank > layer["components"]:
        raise CheckpointError(
            f"elastic layer {layer['name']}: rank {rank!r:.40}, which is not in its "
            f"{layer['components']} components{' or dense' if layer['has_dense'] else ''}"
        )


def _check_steps(entry: Mapping[str, Any]) -> None:
    layers, steps, losses = entry["layers"], entry["steps"], entry["losses"]
    if not isinstance(steps, list) or not isinstance(losses, list):
        raise CheckpointError("'elastic' has steps or losses that are no list")
    if len(losses) != len(steps) + 1 or not all(map(_is_number, losses)):
        raise CheckpointError(
            f"'elastic' has {len(losses)} losses for {len(steps)} steps, expected one more"
        )
    ranks = [layer["first"] for layer in layers]
    for step in steps:
        if not (isinstance(step, list) and len(step) == 2 and _is_count(step[0], 0)):
            raise CheckpointError(f"'elastic' has the step {step!r:.80}")
        index, rank = step
        if index >= len(layers):
            raise CheckpointError(f"'elastic' has a step of layer {index} of {len(layers)}")
        _check_rank(layers[index], rank)
        if ranks[index] == DENSE or DENSE < rank <= ranks[index]:
            raise CheckpointError(
                f"'elastic' has a step of {layers[index]['name']} from rank {ranks[index]} to "
                f"{rank}, which is not upward"
            )
        ranks[index] = rank


def _is_number(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)  # type: ignore[arg-type]


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
