"""The entry of a compressed checkpoint in config.json, under `quantization_config`.

A config is read from files that anyone may have written, so each field is checked here, and
again against the model (`spectrim.checkpoint.empty_layers`) before a module is touched.
"""

from __future__ import annotations

import json
import re
from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from spectrim.checkpoint.config_entries import (
    COMPENSATED,
    check_compensated,
    check_inner,
    check_removed,
)
from spectrim.errors import CheckpointError, UnknownNameError
from spectrim.layers import layer_class
from spectrim.version import QUANT_METHOD

FORMAT_VERSION = 1
SHARED = "shared_basis"
MODULE_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")


class SpectrimConfig(QuantizationConfigMixin):
    """Layer types and ranks by module name, and where they came from.

    `layers` maps a module name to `{"kind": str, "rank": int}`, and where it uses the basis of
    another shared_basis layer `"basis"`, that layer's name, and `"bias": true` where the dense
    layer has none; for compressed layers with a
    low-rank path see `layers.quantized`. `split_experts` names the fused experts that became
    one layer per expert; `untied` says that the output embedding no longer is the input
    embedding; `embeddings` is None or `{"name", "rank", "mean", "head"}` of a factored table,
    `head` the output embedding that shares its factors, or None; `provenance` is free JSON;
    `inner` is None or what the factors are quantized by (`checkpoint.config_entries`);
    `elastic` is None or the sizes that are cut on loading (`checkpoint.elastic.entry`);
    `removed_experts` maps a name of split experts to `{"router": str, "removed": [int, ...]}`.
    """

    def __init__(
        self,
        layers: dict[str, dict[str, Any]] | None = None,
        split_experts: list[str] | None = None,
        untied: bool = False,
        provenance: dict[str, Any] | None = None,
        **more: Any,
    ):
        self.quant_method = more.pop("quant_method", QUANT_METHOD)
        self.version = more.pop("version", FORMAT_VERSION)
        self.inner = more.pop("inner", None)
        self.embeddings = more.pop("embeddings", None)
        self.elastic = more.pop("elastic", None)
        self.removed_experts = more.pop("removed_experts", None) or {}
        self.layers = {} if layers is None else layers
        self.split_experts = [] if split_experts is None else split_experts
        self.untied = untied
        self.provenance = {} if provenance is None else provenance
        _check_header(self, more)
        _check_layers(self.layers)
        _check_split_experts(self.split_experts)
        check_removed(self.removed_experts, self.split_experts)
        for entry in self.removed_experts.values():
            _check_name(entry["router"])
        _check_embeddings(self.embeddings)
        check_inner(self.inner)
        _check_json(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields; those that earlier versions do not know only if used."""
        values: dict[str, Any] = super().to_dict()
        for name in ("elastic", "removed_experts"):
            if not values[name]:
                del values[name]
        return values


def _check_header(config: SpectrimConfig, unknown: dict[str, Any]) -> None:
    """Raise CheckpointError; the version is first, as newer formats may differ in fields."""
    version = config.version
    if not _is_int(version) or version < 1:
        raise CheckpointError(f"checkpoint format version is {version!r}, expected 1 or more")
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"checkpoint format {version} is newer than this spectrim reads "
            f"({FORMAT_VERSION}); upgrade spectrim"
        )
    if config.quant_method != QUANT_METHOD:
        raise CheckpointError(
            f"quant_method is {config.quant_method!r}, expected {QUANT_METHOD!r}"
        )
    if unknown:
        raise CheckpointError(f"unknown fields in the checkpoint's config: {sorted(unknown)}")
    if not isinstance(config.untied, bool):
        raise CheckpointError(f"'untied' is {config.untied!r}, expected true or false")


def _check_layers(layers: object) -> None:
    if not isinstance(layers, dict):
        raise CheckpointError(f"'layers' is a {type(layers).__name__}, expected a mapping")
    kinds: set[str] = set()
    for name, entry in layers.items():
        _check_name(name)
        if isinstance(entry, dict) and entry.get("kind") == COMPENSATED:
            check_compensated(name, entry)
            continue
        if not isinstance(entry, dict) or set(entry) - {"basis", "bias"} != {"kind", "rank"}:
            raise CheckpointError(f"layer {name}: expected {{kind, rank}}, got {entry!r}")
        if not isinstance(entry["kind"], str):
            raise CheckpointError(f"layer {name}: kind is {entry['kind']!r}, expected a name")
        if not _is_int(entry["rank"]) or entry["rank"] < 1:
            raise CheckpointError(
                f"layer {name}: rank is {entry['rank']!r}, expected a whole number of 1 or more"
            )
        if not isinstance(entry.get("bias", True), bool):
            raise CheckpointError(f"layer {name}: bias is {entry['bias']!r}, expected true")
        if "basis" in entry:
            _check_basis(name, entry, layers)
        kinds.add(entry["kind"])
    for kind in sorted(kinds):
        _check_kind(kind)


def _check_basis(name: str, entry: dict[str, Any], layers: dict[str, Any]) -> None:
    """Check that a shared layer's owner exists, has a basis, and the same kind and rank."""
    owner = entry["basis"]
    wanted = {"kind": entry["kind"], "rank": entry["rank"]}
    held = layers.get(owner) if isinstance(owner, str) else None
    held = {k: v for k, v in held.items() if k != "bias"} if isinstance(held, dict) else None
    if entry["kind"] != SHARED or held != wanted:
        raise CheckpointError(
            f"layer {name}: basis is {owner!r:.80}, expected the name of a {SHARED} layer of "
            f"rank {entry['rank']} with a basis of its own"
        )


def _check_kind(kind: str) -> None:
    try:
        layer_class(kind)
    except UnknownNameError as error:
        raise CheckpointError(
            f"{error}; the checkpoint may need an extension of spectrim"
        ) from None


def _check_split_experts(names: object) -> None:
    if not isinstance(names, list):
        raise CheckpointError(f"'split_experts' is a {type(names).__name__}, expected a list")
    for name in names:
        _check_name(name)
    if len(set(names)) != len(names):
        raise CheckpointError("'split_experts' names a module twice")


def _check_embeddings(entry: object) -> None:
    if entry is None:
        return
    if not isinstance(entry, dict) or set(entry) != {"name", "rank", "mean", "head"}:
        raise CheckpointError(
            f"'embeddings' is {entry!r:.80}, expected a mapping of name, rank, mean and head"
        )
    for name in (entry["name"], *([] if entry["head"] is None else [entry["head"]])):
        _check_name(name)
    if not _is_int(entry["rank"]) or entry["rank"] < 1 or not isinstance(entry["mean"], bool):
        raise CheckpointError(
            f"'embeddings' has rank {entry['rank']!r} and mean {entry['mean']!r}, expected a "
            "whole number of 1 or more, and true or false"
        )


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not MODULE_NAME.fullmatch(name):
        raise CheckpointError(
            f"{name!r:.80} is not a module name like model.layers.0.mlp.up_proj"
        )


def _check_json(config: SpectrimConfig) -> None:
    inner, provenance = config.inner, config.provenance
    if not isinstance(provenance, dict) or not (inner is None or isinstance(inner, dict)):
        raise CheckpointError("'provenance' and 'inner' have to be mappings")
    try:
        json.dumps([provenance, inner], sort_keys=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"'provenance' and 'inner' have to be JSON: {error}") from None


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
