"""Fused mixture-of-experts weights as one `nn.Linear` per expert.

Transformers keeps the experts of a block in 3-D parameters (`gate_up_proj (E, 2I, H)`,
`down_proj (E, H, I)`) whose products no hook can see. `split_experts` replaces such a
module by `SplitExperts`: the same arithmetic over plain linear children, which are then
calibrated, decomposed and replaced like every other layer. The flags that describe the
layout (transposed, biased, gated) are the ones transformers sets on the fused module.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.errors import ModelError

_UP_NAMES = ("gate_up_proj", "up_proj")


def is_fused_experts(module: nn.Module) -> bool:
    down = module._parameters.get("down_proj")
    return down is not None and down.dim() == 3 and _up_name(module) is not None


def fused_expert_names(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if is_fused_experts(module)]


def split_expert_names(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, SplitExperts)]


def split_experts(model: nn.Module, names: list[str]) -> None:
    """Replace the fused modules `names` in place. Raises ModelError for an unknown layout."""
    for name in names:
        fused = model.get_submodule(name)
        if not is_fused_experts(fused):
            raise ModelError(f"{name} is a {type(fused).__name__}, expected fused experts")
        model.set_submodule(name, SplitExperts(fused))


class SplitExperts(nn.Module):
    """`sum_e weight_e * down_e(gate(up_e(x)))` over the experts chosen for each token.

    Children: `up.{e}` (H -> 2I, or I when ungated) and `down.{e}` (I -> H). `routes` is filled
    with the rows of the tokens of each child that is run, where a mapping is given for it.
    """

    routes: dict[nn.Module, Tensor] | None = None

    def __init__(self, fused: nn.Module):
        super().__init__()
        if getattr(fused, "has_post_expert_norm", False):
            raise ModelError(f"{type(fused).__name__} normalises inside experts: not supported")
        up_name = _up_name(fused)
        assert up_name is not None
        self.has_gate = bool(getattr(fused, "has_gate", True))
        self.up = _linears(fused, up_name)
        self.down = _linears(fused, "down_proj")
        self.activation = fused  # keeps the gate function and its constants, not the weights
        for parameter in list(fused._parameters):
            delattr(fused, parameter)
        self.train(fused.training)

    def forward(
        self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
    ) -> Tensor:
        """hidden_states (tokens, H), top_k_index and top_k_weights (tokens, k)."""
        result = torch.zeros_like(hidden_states)
        for expert, (up, down) in enumerate(zip(self.up, self.down, strict=True)):
            tokens, choice = torch.where(top_k_index == expert)
            if tokens.numel() == 0:
                continue
            if self.routes is not None:
                self.routes |= {up: tokens, down: tokens}
            hidden = self._gate(up(hidden_states[tokens]))
            output = down(hidden) * top_k_weights[tokens, choice, None]
            result = result.index_add(0, tokens, output.to(result.dtype))
        return result

    def _gate(self, up: Tensor) -> Tensor:
        activation: Any = self.activation
        return activation._apply_gate(up) if self.has_gate else activation.act_fn(up)


@contextmanager
def record_routes(model: nn.Module) -> Iterator[dict[nn.Module, Tensor]]:
    """Yield a mapping from each expert layer to the rows of the tokens that it was run on last.

    Layers outside of experts, which see all tokens, are not in it. Contexts may be nested.
    """
    experts = [module for module in model.modules() if isinstance(module, SplitExperts)]
    outer = [module.routes for module in experts]
    routes: dict[nn.Module, Tensor] = next((found for found in outer if found is not None), {})
    for module in experts:
        module.routes = routes
    try:
        yield routes
    finally:
        for module, before in zip(experts, outer, strict=True):
            module.routes = before


def _up_name(module: nn.Module) -> str | None:
    for name in _UP_NAMES:
        parameter = module._parameters.get(name)
        if parameter is not None and parameter.dim() == 3:
            return name
    return None


def _linears(fused: nn.Module, name: str) -> nn.ModuleList:
    weights = fused._parameters[name]
    biases = fused._parameters.get(name + "_bias")
    assert weights is not None
    transposed = bool(getattr(fused, "is_transposed", False))
    linears = nn.ModuleList()
    for expert in range(weights.shape[0]):
        weight = weights.data[expert].T if transposed else weights.data[expert]
        linear = nn.Linear(weight.shape[1], weight.shape[0], biases is not None, "meta")
        linear.weight = nn.Parameter(weight.contiguous().clone(), weights.requires_grad)
        if biases is not None:
            linear.bias = nn.Parameter(biases.data[expert].clone(), biases.requires_grad)
        linears.append(linear)
    return linears
