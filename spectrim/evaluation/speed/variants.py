"""The models of a speed benchmark, the bytes and operations of each, and fused copies."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from spectrim.evaluation.size import stored_bytes
from spectrim.evaluation.speed.workloads import decodes
from spectrim.inference import fuse
from spectrim.models.linear import is_linear


@dataclass(frozen=True)
class SpeedVariant:
    """against: the name of the model in the same race that its speed is compared with."""

    name: str
    model: PreTrainedModel
    against: str


def make_variants(
    dense: PreTrainedModel | None,
    compressed: PreTrainedModel | None,
    compiled: bool = False,
    kernels: bool = False,
    tiles: bool = False,
) -> list[SpeedVariant]:
    """Return the dense model and the compressed one plain, fused and with `kernels` or `tiles`.

    With `compiled` also the dense and the fused one compiled.
    """
    found: list[SpeedVariant] = []
    first = "dense" if dense is not None else "compressed"
    if dense is not None:
        found.append(SpeedVariant("dense", dense, first))
    if compressed is not None:
        found.append(SpeedVariant("compressed", compressed, first))
        found.append(SpeedVariant("fused", fused_twin(compressed), first))
    extra: list[SpeedVariant] = []
    for name, chosen in _ways(kernels, tiles).items():
        if compressed is not None:
            extra.append(SpeedVariant(name, fused_twin(compressed, *chosen), first))
    if compiled:
        base = f"{first if dense is not None else 'fused'} compiled"
        found += [
            SpeedVariant(f"{c.name} compiled", _compiled_twin(c.model), base)
            for c in found
            if c.name != "compressed"
        ]
    return found + extra


def _ways(kernels: bool, tiles: bool) -> dict[str, tuple[bool, bool]]:
    ways = {"kernels": (True, False), "tiles": (False, True), "kernels, tiles": (True, True)}
    return {n: w for n, w in ways.items() if w[0] <= kernels and w[1] <= tiles}


def fused_twin(
    model: PreTrainedModel, kernels: bool = False, tiles: bool = False
) -> PreTrainedModel:
    """Return a fused copy with its own weights, since they are stored in another order."""
    twin = copy.deepcopy(model)
    fuse(twin, kernels=kernels, tiles=tiles)
    return twin


def _compiled_twin(model: PreTrainedModel) -> PreTrainedModel:
    """Return a compiled model on the same tensors."""
    tensors = [*model.parameters(), *model.buffers()]
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    forward: Any = torch.compile(twin.forward, dynamic=True)
    twin.forward = forward
    return twin


def read_bytes(model: PreTrainedModel) -> int:
    """Return the bytes of weights that a token needs, without a plain lookup table."""
    embedding: Any = model.get_input_embeddings()
    output: Any = model.get_output_embeddings() if decodes(model) else None
    tied = output is not None and output.weight is embedding.weight
    return stored_bytes(model) - (0 if tied else stored_bytes(embedding))


def operations(model: PreTrainedModel, batch: int, length: int) -> int:
    """Return the operations of a prefill.

    These are 2 per weight and token, the output embedding for one token per row, and scores and
    weighted sums of attention over the visible positions (half, if causal).
    """
    head: Any = model.get_output_embeddings() if decodes(model) else None
    weights = {id(m.weight): m.weight.numel() for m in _linears(model) if m is not head}
    products = 2 * sum(weights.values()) * batch * length
    if head is not None:
        products += 2 * head.weight.numel() * batch
    return products + batch * length**2 * _attention_width(model) // (1 if head is None else 2)


def cache_bytes(model: PreTrainedModel, batch: int, length: int, item: int) -> int:
    """Return the bytes of keys and values that a token reads after `length` others."""
    text = model.config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    return 2 * text.num_hidden_layers * heads * _head_width(text) * batch * length * item


def _linears(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if is_linear(module)]


def _attention_width(model: PreTrainedModel) -> int:
    """Return 4 x heads x head width over all blocks: operations per pair of tokens."""
    text = model.config.get_text_config()
    return 4 * text.num_hidden_layers * text.num_attention_heads * _head_width(text)


def _head_width(text: Any) -> int:
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
