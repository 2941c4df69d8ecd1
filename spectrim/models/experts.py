"""Fused mixture-of-experts weights as one `nn.Linear` per expert.

Transformers keeps the experts of a block in 3-D parameters (`gate_up_proj (E, 2I, H)`,
`down_proj (E, H, I)`) whose products no hook can see. `split_experts` replaces such a
module by `SplitExperts`: the same arithmetic over plain linear children, which are then
calibrated, decomposed and replaced like every other layer. The flags that describe the
layout (transposed, biased, gated) are those of the fused module, or follow from its shapes.
Experts with other parameters, or called in another way, are not split.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.errors import ModelError
from spectrim.models.hooks import attach_hooks
from spectrim.models.linear import agree, get_shape

_UP_NAMES = ("gate_up_proj", "up_proj")
_ROUTED = 3
_BATCHED = 1
"""Arguments of experts given tokens, choices and weights, and of those given tokens."""
_SMALLEST_SIDE = 5
"""Of a matrix in a stack; kernels of convolutions are shorter."""


def is_fused_experts(module: nn.Module) -> bool:
    """Return whether `module` holds experts in a layout that `split_experts` can follow."""
    up_name = _up_name(module)
    if up_name is None or getattr(module, "has_post_expert_norm", False):
        return False
    known = {up_name, "down_proj", f"{up_name}_bias", "down_proj_bias"}
    held = {name for name, value in module._parameters.items() if value is not None}
    down = module._parameters.get("down_proj")
    return held <= known and down is not None and down.dim() == 3 and _kind(module) is not None


def fused_expert_names(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if is_fused_experts(module)]


def split_expert_names(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, SplitExperts)]


def stacked_weight_names(model: nn.Module) -> list[str]:
    """Return the modules that keep several matrices in one parameter, convolutions apart."""
    return [name for name, module in model.named_modules() if _is_stacked(module)]


def split_experts(model: nn.Module, names: list[str]) -> None:
    """Replace the fused modules `names` in place. Raises ModelError for an unknown layout."""
    for name in names:
        model.set_submodule(name, split(model.get_submodule(name), name))


def split(fused: nn.Module, name: str = "") -> SplitExperts:
    """Return the experts of `fused`, which is left as it is, as linear layers."""
    kind = _kind(fused)
    if kind is None or not is_fused_experts(fused):
        raise ModelError(f"{name} is a {type(fused).__name__}, expected fused experts")
    return kind(fused)


class RemovedExpert(nn.Module):
    """The place of an expert that was removed; the others keep their numbers in names."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        raise RuntimeError("a removed expert was called")


class SplitExperts(nn.Module):
    """`sum_e weight_e * down_e(gate(up_e(x)))` over the experts chosen for each token.

    Children: `up.{e}` (H -> 2I, or I when ungated) and `down.{e}` (I -> H). `kept` are the
    numbers of the experts that are there; routers count only these. `routes` is filled with
    the rows of the tokens of each child that is run, where a mapping is given for it.
    """

    routes: dict[nn.Module, Tensor] | None = None

    def __init__(self, fused: nn.Module):
        super().__init__()
        up_name = _up_name(fused)
        assert up_name is not None
        count = len(_parameter(fused, "down_proj"))  # experts beyond it have no weights
        self.up = _linears(fused, up_name, count)
        self.down = _linears(fused, "down_proj", count)
        self.kept = tuple(range(count))
        is_gated = get_shape(self.up[0])[0] == 2 * get_shape(self.down[0])[1]
        self.has_gate = bool(getattr(fused, "has_gate", is_gated))
        self.activation = _without_parameters(fused)
        self.train(fused.training)

    def forward(
        self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
    ) -> Tensor:
        """hidden_states (tokens, H), top_k_index and top_k_weights (tokens, k)."""
        result = torch.zeros_like(hidden_states)
        for position, expert in enumerate(self.kept):
            tokens, choice = torch.where(top_k_index == position)
            if tokens.numel() == 0:
                continue
            output = self._expert(expert, hidden_states[tokens], tokens)
            output = output * top_k_weights[tokens, choice, None]
            result = result.index_add(0, tokens, output.to(result.dtype))
        if isinstance(getattr(self.activation, "identity_expert", None), nn.Identity):
            passed = (top_k_weights * (top_k_index >= len(self.kept))).sum(-1, keepdim=True)
            result = result + (hidden_states * passed).to(result.dtype)
        return result

    @property
    def removed(self) -> list[int]:
        """Return the numbers of the experts that are not there."""
        return [e for e, down in enumerate(self.down) if isinstance(down, RemovedExpert)]

    def output(self, expert: int, hidden_states: Tensor) -> Tensor:
        """Return what one expert makes of hidden_states (n, H), with weight one, (n, H)."""
        return self.down[expert](self._gate(self.up[expert](hidden_states)))

    def without(self, removed: Collection[int]) -> SplitExperts:
        """Return the same experts, some of them removed; layers are shared with this module."""
        smaller = copy.copy(self)
        smaller._modules = dict(self._modules)
        for name in ("up", "down"):
            layers = enumerate(self._modules[name].children())  # type: ignore[union-attr]
            smaller._modules[name] = nn.ModuleList(
                RemovedExpert() if expert in removed else layer for expert, layer in layers
            )
        smaller.kept = tuple(expert for expert in self.kept if expert not in removed)
        return smaller

    def _expert(self, expert: int, hidden_states: Tensor, tokens: Tensor) -> Tensor:
        if self.routes is not None:
            self.routes |= {self.up[expert]: tokens, self.down[expert]: tokens}
        return self.output(expert, hidden_states)

    def _gate(self, up: Tensor) -> Tensor:
        activation: Any = self.activation
        if not self.has_gate:
            return activation.act_fn(up)
        if hasattr(activation, "_apply_gate"):
            return activation._apply_gate(up)
        gate, up = up.chunk(2, dim=-1)
        return activation.act_fn(gate) * up


class SplitBatchedExperts(SplitExperts):
    """Experts that are given the tokens of each one below another, weighted before: zeros
    where a token is not for the expert, and zeros come out."""

    def forward(self, hidden_states: Tensor) -> Tensor:  # type: ignore[override]
        """hidden_states (experts * tokens, H)."""
        batched = hidden_states.view(len(self.down), -1, hidden_states.shape[-1])
        results = []
        for expert, hidden in enumerate(batched):
            result = torch.zeros_like(hidden)
            (tokens,) = torch.where(hidden.any(-1))
            if tokens.numel():
                output = self._expert(expert, hidden[tokens], tokens)
                result = result.index_add(0, tokens, output.to(result.dtype))
            results.append(result)
        return torch.cat(results)


class ExpertCalls:
    """The fused experts of a model, and what each was given and returned when it was run."""

    def __init__(self, model: nn.Module):
        self.modules = {name: model.get_submodule(name) for name in fused_expert_names(model)}
        self._calls: dict[str, tuple[tuple[Any, ...], dict[str, Any], Any]] = {}

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Keep the first call of each module that is run inside the context."""

        def hook_for(name: str) -> Any:
            def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
                self._calls.setdefault(name, (args, kwargs, output))

            return hook

        after = [(module, hook_for(name)) for name, module in self.modules.items()]
        with attach_hooks(after=after, with_kwargs=True):
            yield

    def names_that_split(self) -> list[str]:
        """Return the modules whose split experts compute the same, where they were run."""
        return [name for name, fused in self.modules.items() if self._agrees(name, fused)]

    @torch.no_grad()
    def _agrees(self, name: str, fused: nn.Module) -> bool:
        if name not in self._calls:
            return True
        args, kwargs, output = self._calls[name]
        try:
            return agree(split(fused, name)(*args, **kwargs), output)
        except (TypeError, RuntimeError, IndexError, AttributeError):
            return False


def _kind(module: nn.Module) -> type[SplitExperts] | None:
    """Return the class of split module that is called as the fused one is."""
    arguments = len(inspect.signature(module.forward).parameters)
    if arguments == _ROUTED:
        return SplitExperts
    held = [name for name, value in module._parameters.items() if value is not None]
    biased = any(name.endswith("_bias") for name in held)
    return SplitBatchedExperts if arguments == _BATCHED and not biased else None


def _is_stacked(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.conv._ConvNd):
        return False
    stacks = [p for p in module._parameters.values() if p is not None and p.dim() == 3]
    return any(min(stack.shape[1:]) >= _SMALLEST_SIDE for stack in stacks)


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


def _parameter(module: nn.Module, name: str) -> nn.Parameter:
    parameter = module._parameters[name]
    assert parameter is not None
    return parameter


def _without_parameters(fused: nn.Module) -> nn.Module:
    """Return the module's activation and constants alone."""
    shell = copy.copy(fused)
    shell._parameters = {}
    return shell


def _is_transposed(fused: nn.Module) -> bool:
    """Return the module's flag, else whether the width shared by both parameters is last."""
    up_name = _up_name(fused)
    assert up_name is not None
    up, down = _parameter(fused, up_name), _parameter(fused, "down_proj")
    stored_in_out = up.shape[1] == down.shape[2] and up.shape[2] != down.shape[1]
    return bool(getattr(fused, "is_transposed", stored_in_out))


def _linears(fused: nn.Module, name: str, count: int) -> nn.ModuleList:
    weights, biases = _parameter(fused, name), fused._parameters.get(name + "_bias")
    transposed = _is_transposed(fused)
    linears = nn.ModuleList()
    for expert in range(count):
        weight = weights.data[expert].T if transposed else weights.data[expert]
        linear = nn.Linear(weight.shape[1], weight.shape[0], biases is not None, "meta")
        linear.weight = nn.Parameter(weight.contiguous().clone(), weights.requires_grad)
        if biases is not None:
            linear.bias = nn.Parameter(biases.data[expert].clone(), biases.requires_grad)
        linears.append(linear)
    return linears
