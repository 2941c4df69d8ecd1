"""The parameters that are trained: everything inside the blocks, factors in balanced form.

A factored layer of any kind is trained as `W_hat = left right` with

    left = U sqrt(S),   right = sqrt(S) V^T,   U S V^T = W_hat,

and put back into its own kind afterward (a change of storage, in float64): Adam's steps have
the same size along every coordinate, and in this form the coordinates of a layer, and of all
kinds of layer, have comparable sizes. A kind that cannot store every such product trains the
tensors it has. Layers on one basis keep it: their stacked weight is factored as one, and the
basis is one parameter, under the name of the layer that holds it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from spectrim.errors import ModelError
from spectrim.layers import FactoredLinear
from spectrim.layers.lowrank import LowRankLinear
from spectrim.layers.shared_basis import SharedBasisLinear
from spectrim.models.hooks import evaluation_mode
from spectrim.models.replace import factored_layers, replace_layer, share_basis, shared_bases
from spectrim.models.targets import decoder_blocks as decoder_blocks

Parameters = dict[str, nn.Parameter]


@contextmanager
def balanced_parameters(model: nn.Module) -> Iterator[Parameters]:
    """Yield the parameters to train, by name; they are the model's own and in float32.

    The model is in evaluation mode inside. On leaving, factors are put back into their own
    kinds; after an error the model is what it was before. Raises ModelError.
    """
    flags = {name: p.requires_grad for name, p in _all_parameters(model)}
    before = _Before()
    try:
        with evaluation_mode(model):
            yield _exchange(model, before)
            _restore_kinds(model, before)
    except BaseException:
        before.put_back(model)
        raise
    finally:
        for name, parameter in _all_parameters(model):
            parameter.requires_grad_(flags.get(name, parameter.requires_grad))


@dataclass
class _Before:
    """The model's previous state: factored layers by name, parameters by module and name."""

    layers: dict[str, FactoredLinear] = field(default_factory=dict)
    parameters: list[tuple[nn.Module, str, nn.Parameter]] = field(default_factory=list)

    def put_back(self, model: nn.Module) -> None:
        for name, layer in self.layers.items():
            model.set_submodule(name, layer)
        for module, own, parameter in self.parameters:
            setattr(module, own, parameter)


def _exchange(model: nn.Module, before: _Before) -> Parameters:
    """Replace all parameters in the blocks by copies, but for those used outside them too."""
    outer = _trained_modules(model)
    outside = _parameters_outside(model, outer)
    shared = _exchange_shared(model, before, outer, outside)
    for name, layer in list(factored_layers(model)):
        if name.startswith(outer) and name not in shared and layer.LOSSLESS:
            before.layers[name] = layer
            replace_layer(model, name, LowRankLinear.from_factors(*balanced_factors(layer)))
    copies: dict[int, nn.Parameter] = {}
    trained: Parameters = {}
    for name, parameter in list(_all_parameters(model)):
        wanted = name.startswith(outer) and id(parameter) not in outside
        if not (wanted and parameter.is_floating_point()):
            continue
        path, _, own = name.rpartition(".")
        module = model.get_submodule(path)
        before.parameters.append((module, own, parameter))
        if id(parameter) not in copies:
            copies[id(parameter)] = trained[name] = _trainable_copy(name, parameter)
        setattr(module, own, copies[id(parameter)])
    return trained


def _exchange_shared(
    model: nn.Module, before: _Before, outer: tuple[str, ...], outside: set[int]
) -> set[str]:
    """Balanced factors of every group of layers on one basis; gives the layers' names. A
    basis that layers outside the blocks use too is added to `outside`."""
    layers = dict(factored_layers(model))
    found: set[str] = set()
    for owner, names in shared_bases(model).items():
        found |= set(names)
        if not all(name.startswith(outer) for name in names):
            basis = layers[owner].get_submodule("right")
            outside |= {id(parameter) for parameter in basis.parameters()}
            continue
        before.layers |= {name: layers[name] for name in names}
        dense = {name: layers[name].dense() for name in names}
        rows = [len(weight) for weight, _ in dense.values()]
        stacked = torch.cat([weight for weight, _ in dense.values()])
        left, right = balance(stacked, layers[owner].rank)
        lefts = dict(zip(names, left.split(rows), strict=True))
        share_basis(model, lefts, right, {name: bias for name, (_, bias) in dense.items()})
    return found


def _trained_modules(model: nn.Module) -> tuple[str, ...]:
    """Return the names of decoder blocks, or of the factored layers of a model without."""
    found = [name for name, _ in decoder_blocks(model) or factored_layers(model)]
    if not found:
        raise ModelError(
            f"{type(model).__name__} has no decoder block and no factored layer to refine; "
            "compress it first"
        )
    return tuple(name + "." for name in found)


def _parameters_outside(model: nn.Module, outer: tuple[str, ...]) -> set[int]:
    return {id(p) for name, p in _all_parameters(model) if not name.startswith(outer)}


def _all_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return model.named_parameters(remove_duplicate=False)


def _trainable_copy(name: str, parameter: nn.Parameter) -> nn.Parameter:
    if parameter.dtype != torch.float32:
        raise ModelError(
            f"{name} is in {parameter.dtype}; refine a model in float32 (`model.float()`) "
            "and cast it afterward"
        )
    return nn.Parameter(parameter.detach().clone())


def balanced_factors(layer: FactoredLinear) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return left (out, r), right (r, in), `left^T left = right right^T = S`, and the bias."""
    weight, bias = layer.dense()
    return *balance(weight, layer.rank), bias


def balance(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * v[:rank]


def _restore_kinds(model: nn.Module, before: _Before) -> None:
    """Store the trained factors in the kinds that stood there before; drop gradients."""
    for name, layer in before.layers.items():
        trained = model.get_submodule(name)
        if isinstance(trained, SharedBasisLinear):
            continue  # trained as it is stored
        assert isinstance(trained, LowRankLinear)
        left, right, bias = trained.left.weight, trained.right.weight, trained.left.bias
        replace_layer(
            model,
            name,
            type(layer).from_factors(
                left.detach(), right.detach(), None if bias is None else bias.detach()
            ),
        )
    for parameter in model.parameters():
        parameter.grad = None
