"""Remove experts and their rows of the router, so that the router chooses among the others.

A router gives each token the numbers of its experts and their weights. Without some rows of
its parameters it computes what it would with fewer experts: choices and normalization run over
those that are left. It is found as the module whose output the experts are called with, and
taken to be cut this way only where a router cut on recorded tokens makes the same choices for
all tokens that did not choose the removed expert.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.errors import ModelError
from spectrim.models.experts import SplitBatchedExperts, SplitExperts
from spectrim.models.hooks import attach_hooks
from spectrim.models.replace import places_of


@dataclass(frozen=True)
class ExpertRemoval:
    """The experts to remove from one module of split experts, and its router, by name."""

    experts: str
    router: str
    removed: tuple[int, ...]


@dataclass(frozen=True)
class Routing:
    """A module of split experts and the router that chooses among them.

    Attributes:
        experts, router: names of the modules.
        count: experts that the router knows.
        chosen: experts of a token.
        index, weights: places in the router's output.
    """

    experts: str
    router: str
    count: int
    chosen: int
    index: int
    weights: int

    def route(self, router: nn.Module, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return the numbers and weights (n, k) of the experts of hidden (n, H)."""
        output = router(hidden)
        return output[self.index], output[self.weights]


def find_routings(
    model: nn.Module, run: Callable[[], Any]
) -> tuple[dict[str, Routing], list[str]]:
    """Return the routings by name of the experts, and the experts without one.

    run: runs the model on some tokens. Experts are without a routing if they were not run, are
    called with something else than an output of a module beside them, or have a router that
    cannot be cut.
    """
    calls = {
        name: _Call(model, name)
        for name, module in model.named_modules()
        if isinstance(module, SplitExperts)
    }
    with attach_hooks(
        before=[hook for call in calls.values() for hook in call.before],
        after=[hook for call in calls.values() for hook in call.after],
        with_kwargs=True,
    ):
        run()
    routings = {name: call.routing() for name, call in calls.items()}
    found = {name: routing for name, routing in routings.items() if routing is not None}
    return found, [name for name in calls if name not in found]


def remove_experts(model: nn.Module, removals: Iterable[ExpertRemoval]) -> None:
    """Remove experts in place. Raises ModelError for modules that have none to remove."""
    for removal in removals:
        _install(model, _smaller(model, removal))


@contextmanager
def without_experts(model: nn.Module, removals: Iterable[ExpertRemoval]) -> Iterator[None]:
    """Remove experts until the context ends."""
    smaller = {name: m for r in removals for name, m in _smaller(model, r).items()}
    before = {name: model.get_submodule(name) for name in smaller}
    _install(model, smaller)
    try:
        yield
    finally:
        _install(model, before)


def cut_router(router: nn.Module, count: int, kept: Sequence[int]) -> nn.Module:
    """Return a copy of a router of `count` experts that knows only `kept`.

    Raises ModelError for one without a parameter that has a row for each expert.
    """
    memo: dict[int, Any] = {id(tensor): tensor for tensor in _held_tensors(router)}
    smaller, cut = copy.deepcopy(router, memo), False
    for module in smaller.modules():
        held: Any
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None and tensor.dim() and len(tensor) == count:
                    held[name] = _expert_rows(tensor, kept)
                    cut = True
        for name, value in vars(module).items():
            if value == count and isinstance(value, int) and _counts_experts(name):
                setattr(module, name, len(kept))
    if not cut:
        raise ModelError(f"{type(router).__name__} has no row for each of {count} experts")
    return smaller


def _smaller(model: nn.Module, removal: ExpertRemoval) -> dict[str, nn.Module]:
    experts = model.get_submodule(removal.experts)
    if not isinstance(experts, SplitExperts):
        raise ModelError(f"{removal.experts} is a {type(experts).__name__}, expected experts")
    places = [i for i, e in enumerate(experts.kept) if e not in removal.removed]
    if not places or len(places) + len(removal.removed) != len(experts.kept):
        raise ModelError(
            f"{removal.experts} has the experts {experts.kept}; expected some of them, not "
            f"{removal.removed}"
        )
    router = cut_router(model.get_submodule(removal.router), len(experts.kept), places)
    return {removal.experts: experts.without(removal.removed), removal.router: router}


def _install(model: nn.Module, modules: dict[str, nn.Module]) -> None:
    """Put modules in place of those of these names, everywhere where the model uses them."""
    for name, module in modules.items():
        for parent, own_name in places_of(model, model.get_submodule(name)):
            parent._modules[own_name] = module


def _held_tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _expert_rows(tensor: Tensor, kept: Sequence[int]) -> Tensor:
    rows = tensor.detach()[list(kept)].clone()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(rows, tensor.requires_grad)
    return rows


def _counts_experts(name: str) -> bool:
    return name == "out_features" or ("expert" in name and not name.endswith("per_tok"))


class _Call:
    """The calls of the modules beside one module of experts, up to the first of the experts."""

    def __init__(self, model: nn.Module, name: str):
        self.name = name
        self.experts: Any = model.get_submodule(name)
        self.around = name.rpartition(".")[0]
        self.given: list[Any] = []
        self.routers: dict[str, tuple[nn.Module, tuple[Any, ...], dict[str, Any], Any]] = {}
        self.after = [
            (module, self._keep(f"{self.around}.{own}".removeprefix(".")))
            for own, module in model.get_submodule(self.around).named_modules()
            if own and module is not self.experts
        ]
        self.before = [(self.experts, self._given)]

    def _keep(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if isinstance(output, tuple) and not self.given:
                self.routers[name] = (module, args, kwargs, output)

        return hook

    def _given(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self.given = self.given or [*args, *kwargs.values()]

    def routing(self) -> Routing | None:
        if isinstance(self.experts, SplitBatchedExperts):
            return None
        for name, (router, args, kwargs, output) in self.routers.items():
            places = [i for i, part in enumerate(output) if _is_one_of(part, self.given)]
            index = [i for i in places if not output[i].is_floating_point()]
            weights = [i for i in places if output[i].is_floating_point()]
            if len(index) == len(weights) == 1 and len(args) == 1 and not kwargs:
                chosen = output[index[0]].shape[-1]
                count = len(self.experts.kept)
                routing = Routing(self.name, name, count, chosen, index[0], weights[0])
                return routing if _follows(routing, router, args[0]) else None
        return None


def _is_one_of(part: Any, given: Collection[Any]) -> bool:
    return isinstance(part, Tensor) and any(part is each for each in given)


@torch.no_grad()
def _follows(routing: Routing, router: nn.Module, hidden: Tensor) -> bool:
    """Return whether a router without its least chosen expert chooses the others as before."""
    if routing.chosen >= routing.count:
        return False
    before, _ = routing.route(router, hidden)
    removed = int(torch.bincount(before.flatten(), minlength=routing.count).argmin())
    kept = torch.tensor([e for e in range(routing.count) if e != removed]).to(before.device)
    try:
        after, _ = routing.route(cut_router(router, routing.count, kept.tolist()), hidden)
        same = (before != removed).all(-1)
        left, right = (x.sort(-1).values for x in (kept[after], before))
        return after.shape == before.shape and torch.equal(left[same], right[same])
    except (ModelError, RuntimeError, IndexError, TypeError):
        return False
