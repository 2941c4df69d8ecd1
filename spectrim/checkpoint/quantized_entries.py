"""Factors in fewer bits, as a checkpoint's config states them under `inner`:

    {"base": "torchao", "options": {"bits": 8, ...}}

Every linear child of every factored layer is then a `CompressedLinear` of that base, with
`"adapters": RANK` an adapter of at most that rank beside each of them; layers that were left
dense are entries of their own (see `hub.compensated`).
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import nn

from spectrim.errors import CheckpointError, SpectrimError
from spectrim.layers import FactoredLinear
from spectrim.layers.quantized import Adapter, CompressedLinear, quantizer_class


def check_inner(inner: object) -> None:
    """Raises CheckpointError for what is not as above."""
    if inner is None:
        return
    if not isinstance(inner, dict) or set(inner) - {"adapters"} != {"base", "options"}:
        raise CheckpointError(
            f"'inner' is {inner!r:.80}, expected a mapping of base and options"
        )
    rank = inner.get("adapters", 1)
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise CheckpointError(
            f"'inner' states adapters of rank {rank!r:.80}, expected 1 or more"
        )
    if not isinstance(inner["base"], str) or not isinstance(inner["options"], dict):
        raise CheckpointError(
            f"'inner' is {inner!r:.80}, expected a compressor's name and its options"
        )
    try:
        quantizer_class(inner["base"]).parsed(inner["options"])
    except SpectrimError as error:
        raise CheckpointError(f"'inner': {error}") from None


def swap_children(model: nn.Module, inner: dict[str, Any] | None) -> None:
    """Empty compressed children in place of the linear ones, to be filled by the loader.

    Raises CheckpointError for shapes or a machine that the compressor does not serve.
    """
    if inner is None:
        return
    kind = quantizer_class(inner["base"])
    options = kind.parsed(inner["options"])
    for layer in _factored(model):
        for own, child in list(layer.named_children()):
            if isinstance(child, nn.Linear):
                shape = (child.out_features, child.in_features)
                try:
                    empty = kind.empty(shape, child.bias is not None, options)
                except SpectrimError as error:
                    raise CheckpointError(str(error)) from error
                if "adapters" in inner:
                    empty.adapter = Adapter(shape[1], shape[0], inner["adapters"])
                setattr(layer, own, empty)


def inner_of(model: nn.Module, base: str) -> dict[str, Any] | None:
    """What `model` holds, for its config; None where no child is compressed."""
    children = [
        child
        for layer in _factored(model)
        for child in layer.children()
        if isinstance(child, CompressedLinear)
    ]
    if not children:
        return None
    held = {"base": base, "options": children[0].stated}
    ranks = [child.adapter.down.out_features for child in children if child.adapter]
    return held | {"adapters": max(ranks)} if ranks else held


def check_children(model: nn.Module, inner: dict[str, Any] | None) -> None:
    """Raises CheckpointError unless the children are what `inner` says."""
    held = inner_of(model, "" if inner is None else inner["base"])
    stated = None
    if inner is not None and any(_factored(model)):
        parsed = quantizer_class(inner["base"]).parsed(inner["options"])
        stated = inner | {"options": asdict(parsed)}
    if held != stated:
        raise CheckpointError(
            f"the config says 'inner' {inner}, the model's factors are stored by {held}"
        )


def _factored(model: nn.Module) -> list[FactoredLinear]:
    return [module for module in model.modules() if isinstance(module, FactoredLinear)]
