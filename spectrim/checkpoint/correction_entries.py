"""What a checkpoint's config says of a compressed layer with a low-rank path beside it:

    {"kind": "compensated", "base": "rtn", "options": {"bits": 4, ...}, "rank": 16}

`base` is a compressor's name, `options` its own; rank 0 is the compressed layer alone.
"""

from __future__ import annotations

from typing import Any

from spectrim.errors import CheckpointError, SpectrimError, UnknownNameError
from spectrim.layers.quantized import CompensatedLinear, quantizer_class

COMPENSATED = "compensated"


def compensated_entry(base: str, layer: CompensatedLinear) -> dict[str, Any]:
    return {
        "kind": COMPENSATED,
        "base": base,
        "options": layer.base.stated,
        "rank": layer.rank,
    }


def check_compensated(name: str, entry: dict[str, Any]) -> None:
    """Raises CheckpointError for an entry that is not as above."""
    expected = {"kind", "base", "options", "rank"}
    if set(entry) != expected:
        raise CheckpointError(f"layer {name}: expected {sorted(expected)}, got {entry!r:.200}")
    rank, options = entry["rank"], entry["options"]
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 0:
        raise CheckpointError(
            f"layer {name}: rank is {rank!r}, expected a whole number of 0 or more"
        )
    if not isinstance(entry["base"], str) or not isinstance(options, dict):
        raise CheckpointError(
            f"layer {name}: expected a compressor's name and its options, got {entry!r:.200}"
        )
    try:
        quantizer_class(entry["base"]).parsed(options)
    except UnknownNameError as error:
        raise CheckpointError(
            f"{error}; the checkpoint may need an extension of spectrim"
        ) from None
    except SpectrimError as error:
        raise CheckpointError(f"layer {name}: {error}") from None


def empty_compensated(
    entry: dict[str, Any], shape: tuple[int, int], bias: bool
) -> CompensatedLinear:
    """A layer to be filled by the loader. Raises CheckpointError where this machine cannot
    hold it."""
    compressor = quantizer_class(entry["base"])
    try:
        base = compressor.empty(shape, bias, compressor.parsed(entry["options"]))
    except SpectrimError as error:
        raise CheckpointError(str(error)) from error
    return CompensatedLinear.empty_path(base, entry["rank"])
