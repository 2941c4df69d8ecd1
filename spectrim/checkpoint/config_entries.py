"""Build, check and read the entries of a checkpoint's config that describe special modules.

A quantized layer with a low-rank correction, an entry of `layers` (rank 0: no correction):

    {"kind": "compensated", "base": "rtn", "options": {"bits": 4, ...}, "rank": 16}

Quantized factors, the field `inner`; every linear child of every factored layer is then a
`CompressedLinear`, with `"adapters": RANK` an adapter of at most that rank beside it:

    {"base": "torchao", "options": {"bits": 8, ...}}

where `"others": {"left": "rtn_columns"}` names the quantizers of children that have another.

A factored embedding table, the field `embeddings`; `head` is the tied output embedding:

    {"name": "model.embed_tokens", "rank": 32, "mean": true, "head": "lm_head"}

Removed experts, the field `removed_experts`, by the name of the experts' module:

    {"router": "model.layers.0.mlp.gate", "removed": [1, 5]}

`base` is the name of a quantizer and `options` are its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import nn

from spectrim.errors import CheckpointError, SpectrimError, UnknownNameError
from spectrim.layers import FactoredEmbedding, FactoredHead, FactoredLinear
from spectrim.layers.quantized import (
    QUANTIZERS,
    Adapter,
    CompensatedLinear,
    CompressedLinear,
    quantizer_class,
)

COMPENSATED = "compensated"


def compensated_entry(base: str, layer: CompensatedLinear) -> dict[str, Any]:
    """Return the config's entry for `layer`, quantized by `base`."""
    return {
        "kind": COMPENSATED,
        "base": base,
        "options": layer.base.stated,
        "rank": layer.rank,
    }


def check_compensated(name: str, entry: dict[str, Any]) -> None:
    """Raise CheckpointError unless `entry` has the fields above, with valid values."""
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
            f"layer {name}: expected a quantizer's name and its options, got {entry!r:.200}"
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
    """Return a layer for a loader to fill.

    Raises:
        CheckpointError: This machine cannot hold such a layer.
    """
    quantizer = quantizer_class(entry["base"])
    try:
        base = quantizer.empty(shape, bias, quantizer.parsed(entry["options"]))
    except SpectrimError as error:
        raise CheckpointError(str(error)) from error
    return CompensatedLinear.empty_path(base, entry["rank"])


def check_inner(inner: object) -> None:
    """Raise CheckpointError unless `inner` is None or has the fields above."""
    if inner is None:
        return
    if not isinstance(inner, dict) or set(inner) - {"adapters", "others"} != {
        "base",
        "options",
    }:
        raise CheckpointError(
            f"'inner' is {inner!r:.80}, expected a mapping of base and options"
        )
    rank = inner.get("adapters", 1)
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise CheckpointError(
            f"'inner' has adapters of rank {rank!r:.80}, expected a whole number of 1 or more"
        )
    if not isinstance(inner["base"], str) or not isinstance(inner["options"], dict):
        raise CheckpointError(
            f"'inner' is {inner!r:.80}, expected the name of a quantizer and its options"
        )
    others = inner.get("others", {})
    if not isinstance(others, dict) or not all(isinstance(n, str) for n in others.values()):
        raise CheckpointError(f"'inner' has others {others!r:.80}, expected quantizers' names")
    try:
        for base in (inner["base"], *others.values()):
            quantizer_class(base).parsed(inner["options"])
    except SpectrimError as error:
        raise CheckpointError(f"'inner': {error}") from None


def check_removed(entries: object, split: object) -> None:
    """Raise CheckpointError unless `entries` has the fields above, for modules of `split`."""
    if not isinstance(entries, dict):
        raise CheckpointError(f"'removed_experts' is {entries!r:.80}, expected a mapping")
    for name, entry in entries.items():
        if not isinstance(split, list) or name not in split:
            raise CheckpointError(f"'removed_experts' names {name!r:.80}, no split experts")
        if not isinstance(entry, dict) or set(entry) != {"router", "removed"}:
            raise CheckpointError(
                f"removed experts of {name}: expected {{router, removed}}, got {entry!r:.80}"
            )
        router, removed = entry["router"], entry["removed"]
        whole = isinstance(removed, list) and all(type(e) is int and e >= 0 for e in removed)
        if not isinstance(router, str) or not whole or not removed:
            raise CheckpointError(
                f"removed experts of {name}: router {router!r:.80} and {removed!r:.80}, "
                "expected a module's name and numbers of experts"
            )
        if len(set(removed)) != len(removed):
            raise CheckpointError(f"removed experts of {name}: one is named twice")


def install_empty_children(model: nn.Module, inner: dict[str, Any] | None) -> None:
    """Replace the linear children of factored layers by empty quantized ones, in place.

    Raises:
        CheckpointError: The quantizer does not support a shape, or not this machine.
    """
    if inner is None:
        return
    options = quantizer_class(inner["base"]).parsed(inner["options"])
    others = inner.get("others", {})
    for layer in _factored(model):
        for own, child in list(layer.named_children()):
            if isinstance(child, nn.Linear):
                kind: Any = quantizer_class(others.get(own, inner["base"]))
                shape = (child.out_features, child.in_features)
                try:
                    empty = kind.empty(shape, child.bias is not None, options)
                except SpectrimError as error:
                    raise CheckpointError(str(error)) from error
                if "adapters" in inner:
                    empty.adapter = Adapter(shape[1], shape[0], inner["adapters"])
                setattr(layer, own, empty)


def inner_entry(model: nn.Module, base: str) -> dict[str, Any] | None:
    """Return the field `inner` for `model`, or None if none of its factors is quantized."""
    named = [
        (own, child)
        for layer in _factored(model)
        for own, child in layer.named_children()
        if isinstance(child, CompressedLinear)
    ]
    if not named:
        return None
    children = [child for _, child in named]
    held: dict[str, Any] = {"base": base, "options": children[0].stated}
    if others := _others(named, base):
        held["others"] = others
    ranks = [child.adapter.down.out_features for child in children if child.adapter]
    return held | {"adapters": max(ranks)} if ranks else held


def _others(children: list[tuple[str, CompressedLinear]], base: str) -> dict[str, str]:
    """Return the quantizer of children that `base` did not quantize, by their name."""
    if not base:
        return {}
    usual = quantizer_class(base)
    differ = {own: type(child) for own, child in children if type(child) is not usual}
    names = {quantizer_class(name): name for name in QUANTIZERS.names()} if differ else {}
    return {own: names[kind] for own, kind in differ.items()}


def check_children(model: nn.Module, inner: dict[str, Any] | None) -> None:
    """Raise CheckpointError unless the model's factors are quantized as `inner` states."""
    held = inner_entry(model, "" if inner is None else inner["base"])
    stated = None
    if inner is not None and any(_factored(model)):
        parsed = quantizer_class(inner["base"]).parsed(inner["options"])
        stated = inner | {"options": asdict(parsed)}
    if held != stated:
        raise CheckpointError(
            f"'inner' is {inner} in the config, but the model's factors are stored as {held}"
        )


def _factored(model: nn.Module) -> list[FactoredLinear]:
    return [module for module in model.modules() if isinstance(module, FactoredLinear)]


def install_empty_table(
    model: nn.Module, entry: Mapping[str, Any], inside: Mapping[str, str]
) -> None:
    """Put an empty factored table, and its tied head, into an empty model.

    Args:
        inside: This model's name by the checkpoint's (a bare base model has no head).

    Raises:
        CheckpointError: The table or the head does not fit the model.
    """
    modules = dict(model.named_modules())
    name = inside.get(entry["name"], "")
    old = modules.get(name)
    if type(old) is not nn.Embedding:
        raise CheckpointError(
            f"{entry['name']} is a {type(old).__name__}, expected a plain embedding"
        )
    shape = (old.num_embeddings, old.embedding_dim)
    if entry["rank"] > min(shape):
        raise CheckpointError(
            f"table {name}: rank {entry['rank']} exceeds the largest of shape {shape}"
        )
    table = FactoredEmbedding.empty(shape, entry["rank"], entry["mean"])
    table.coefficients.padding_idx = old.padding_idx
    model.set_submodule(name, table)
    if entry["head"] in inside:
        head = modules.get(inside[entry["head"]])
        if type(head) is not nn.Linear or head.weight.shape != shape or head.bias is not None:
            raise CheckpointError(
                f"{entry['head']} cannot be the output embedding tied to {name}; expected "
                f"a plain linear layer of shape {shape} without bias"
            )
        model.set_submodule(inside[entry["head"]], FactoredHead(table))


def check_table(model: nn.Module, entry: Mapping[str, Any] | None) -> None:
    """Raise CheckpointError unless `entry` describes the model's factored table."""
    if (held := table_entry(model)) != entry:
        raise CheckpointError(
            f"'embeddings' is {entry} in the config, but the model has {held}; "
            "store the result of `table_entry(model)` in the config"
        )


def table_entry(model: nn.Module) -> dict[str, Any] | None:
    """Return the field `embeddings` for `model`, or None if its table is not factored."""
    modules = list(model.named_modules())
    for name, table in modules:
        if isinstance(table, FactoredEmbedding):
            head = (n for n, m in modules if isinstance(m, FactoredHead) and m.table is table)
            mean = table.basis.bias is not None
            return {"name": name, "rank": table.rank, "mean": mean, "head": next(head, None)}
    return None


def fill_table(plain: Any, module: nn.Module, table: FactoredEmbedding | FactoredHead) -> None:
    """Give `module` of the dense model `plain` the table's weight, or the tie to it."""
    if isinstance(table, FactoredHead):
        module.weight = plain.get_input_embeddings().weight
        return
    dtype = table.coefficients.weight.dtype
    module.weight = nn.Parameter(table.dense().to(dtype))
