"""Refuse models whose weights are not plain floating-point matrices."""

from __future__ import annotations

from torch import nn

from spectrim.errors import ModelError
from spectrim.layers import CompactLinear
from spectrim.layers.quantized import CompressedLinear
from spectrim.models.kind import kind_of


def check_no_adapters(model: nn.Module) -> None:
    """Raise ModelError for a model with PEFT adapters, wrapped around it or inside."""
    if getattr(model, "peft_config", None) or getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(
            f"{type(model).__name__} has PEFT adapters, which its weights do not hold; "
            "merge them first: model = model.merge_and_unload()"
        )


def check_causal_kind(model: nn.Module) -> None:
    """Raise ModelError for a model whose loss needs labels, where a text alone is read."""
    if (kind := kind_of(model)).labeled:
        raise ModelError(
            f"{type(model).__name__} is a model of another kind ({kind.name}): this step is "
            "for causal language models; such models are compressed and evaluated on examples "
            "with labels by `spectrim compress`, `plan` and `evaluate`"
        )


def check_compressible(model: nn.Module) -> None:
    """Raise ModelError for a model with adapters, or one already compressed or quantized."""
    check_no_adapters(model)
    if any(isinstance(module, CompactLinear | CompressedLinear) for module in model.modules()):
        raise ModelError(
            f"this {type(model).__name__} is already compressed; compress its original with "
            "another budget, or the result of `spectrim export --dense`"
        )
    if getattr(model, "is_quantized", False):
        method = getattr(model, "quantization_method", "unknown method")
        raise ModelError(
            f"this {type(model).__name__} is quantized ({getattr(method, 'value', method)}); "
            "load the floating-point model that it was made from"
        )
