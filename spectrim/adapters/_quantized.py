"""A correction beside a quantized weight, `y = Q(W) x + b + up(down(x))`, and its updates."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spectrim.adapters._spectral import truncated_pair
from spectrim.errors import ModelError
from spectrim.layers.quantized import Adapter, CompensatedLinear, CompressedLinear

Holder = CompressedLinear | CompensatedLinear
"""A quantized factor, or a quantized layer with a low-rank path."""
Beside = tuple[nn.Linear, ...]
"""`down` and `up`, or nothing."""


def is_quantized(model: nn.Module) -> bool:
    return any(isinstance(module, CompressedLinear) for module in model.modules())


def quantized_layers(model: nn.Module) -> dict[str, Holder]:
    """Return what gets an adapter: quantized factors and layers that were left dense.

    Raises ModelError for a model without any.
    """
    found: dict[str, Holder] = {}
    within: set[nn.Module] = set()
    for name, module in model.named_modules():
        if isinstance(module, CompensatedLinear):
            found[name] = module
            within.add(module.base)
        elif isinstance(module, CompressedLinear) and module not in within:
            found[name] = module
    if not found:
        raise ModelError(f"no layer of this {type(model).__name__} is quantized")
    return found


def beside(holder: Holder) -> Beside:
    """Return `down` and `up` of a quantized layer; () where there are none."""
    if isinstance(holder, CompressedLinear):
        return () if holder.adapter is None else (holder.adapter.down, holder.adapter.up)
    return () if holder.right is None or holder.left is None else (holder.right, holder.left)


def put_beside(holder: Holder, parts: Beside) -> None:
    """Put `down` and `up`, or nothing, beside a quantized layer."""
    if isinstance(holder, CompensatedLinear):
        holder.right, holder.left = parts or (None, None)
        holder.rank = parts[0].out_features if parts else 0
    elif not parts:
        holder.adapter = None
    else:
        holder.adapter = Adapter(holder.in_features, holder.out_features, parts[0].out_features)
        holder.adapter.down, holder.adapter.up = parts


def add_beside(holder: Holder, up: Tensor, down: Tensor) -> None:
    """Add `up down` to what is beside a quantized layer, at no more than its full rank."""
    if parts := beside(holder):
        before, after = (part.weight.detach().to(up) for part in parts)
        up, down = torch.cat([after, up], 1), torch.cat([before, down])
    if up.shape[1] > (most := min(holder.out_features, holder.in_features)):
        up, down, _ = truncated_pair(up, down, most)
    put_beside(holder, _linears(up, down))


def even_ranks(model: nn.Module) -> None:
    """Pad the adapters of quantized factors with zeros to one rank, which the format states."""
    held = [
        (layer, beside(layer))
        for layer in quantized_layers(model).values()
        if isinstance(layer, CompressedLinear) and layer.adapter is not None
    ]
    largest = max((down.out_features for _, (down, _) in held), default=0)
    for layer, (down, up) in held:
        wanted = min(largest, layer.in_features, layer.out_features)
        if (missing := wanted - down.out_features) > 0:
            rows = down.weight.detach(), down.weight.new_zeros(missing, layer.in_features)
            columns = up.weight.detach(), up.weight.new_zeros(layer.out_features, missing)
            put_beside(layer, _linears(torch.cat(columns, 1), torch.cat(rows)))


def _linears(up: Tensor, down: Tensor) -> Beside:
    """Return `down` and `up` as layers in float32."""
    made = []
    for weight in (down, up):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=weight.device)
        layer.weight = nn.Parameter(weight.float().contiguous())
        made.append(layer)
    return tuple(made)
