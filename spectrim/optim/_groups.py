"""Split a model's parameters into matrices and the rest, which AdamW steps."""

from __future__ import annotations

from typing import Any

from torch import nn

_HEADS = ("lm_head", "embed_out", "score", "classifier")
"""Names of output layers in transformers' models, where the model does not say itself."""


def split_params(
    model: nn.Module, weight_decay: float | None = None, lr_rest: float | None = None
) -> list[dict[str, Any]]:
    """Return two parameter groups: matrices of hidden layers, and everything else.

    The rest are embeddings, the output layer, norms, biases and what is not 2-D. `matrix`
    marks the groups; `weight_decay` is that of the matrices only, `lr_rest` the rate of the
    rest. Parameters that need no gradient are left out.
    """
    outside = {id(p) for module in _tables(model) for p in module.parameters()}
    groups: list[dict[str, Any]] = []
    for matrix in (True, False):
        chosen = [
            p
            for p in model.parameters()
            if p.requires_grad and (p.ndim == 2 and id(p) not in outside) == matrix
        ]
        if chosen:
            groups.append({"params": chosen, "matrix": matrix})
    for group in groups:
        if group["matrix"] and weight_decay is not None:
            group["weight_decay"] = weight_decay
        if not group["matrix"]:
            group["weight_decay"] = 0.0
            if lr_rest is not None:
                group |= {"lr": lr_rest, "adamw_ratio": 1.0}
    return groups


def _tables(model: nn.Module) -> list[nn.Module]:
    """Return embeddings and output layers."""
    found = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) or name.rpartition(".")[2] in _HEADS
    ]
    getter = getattr(model, "get_output_embeddings", None)
    head = getter() if callable(getter) else None
    return found if head is None else [*found, head]
