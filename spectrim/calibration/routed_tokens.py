"""What every expert would add to the loss of every token, and the price of removing some.

With g the gradient of the summed loss at a block's routed output and f_e(x) what expert e
makes of the token x, a token is described by one number for each expert,

    s_e = g . f_e(x)

A router without some experts gives weights w', the full one w; the output then changes by
sum_e (w'_e - w_e) f_e(x), and the loss, per token of the text, by

    price = 1/2 E[ (sum_e (w'_e - w_e) s_e)^2 ]

which is the layers' quadratic model (token by token, same labels) for a change that no weight
describes. Any set of experts is priced by running the router alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.calibration.in_memory import (
    Batch,
    CalibrationSettings,
    batches,
    frozen_eval_with_graph,
    summed_loss,
)
from spectrim.data import TokenBlocks
from spectrim.models.expert_removal import Routing, cut_router
from spectrim.models.hooks import attach_hooks

MOST_TOKENS = 16_384
ROUNDING = 1e-10
"""Nats per token; below it is the rounding of weights that are normalized again."""


@dataclass(frozen=True)
class RoutedTokens:
    """The tokens of one module of experts.

    Attributes:
        hidden: the router's input (n, H).
        effects: g . f_e(x), (n, E).
        norms: lengths of f_e(x), (n, E).
        tokens: of the text, n unless the router saw some alone.
    """

    routing: Routing
    router: nn.Module
    hidden: Tensor
    effects: Tensor
    norms: Tensor
    tokens: int

    @property
    def most_removed(self) -> int:
        """Return how many experts can go so that a token still has as many as before."""
        return self.routing.count - self.routing.chosen

    @cached_property
    def choices(self) -> tuple[Tensor, Tensor]:
        """Return the numbers and weights (n, k) of each token's experts."""
        return self._routed(range(self.routing.count))

    def change(self, removed: Sequence[int]) -> Tensor:
        """Return the first-order effect of removing experts on the loss, by token (n,)."""
        kept = [e for e in range(self.routing.count) if e not in set(removed)]
        return self._summed(*self._routed(kept)) - self._summed(*self.choices)

    def price(self, removed: Sequence[int]) -> float:
        """Return the predicted loss of removing experts, nats per token of the text."""
        price = 0.5 * float(self.change(removed).double().square().sum()) / self.tokens
        return price if price > ROUNDING else 0.0

    def prices(self, order: Sequence[int]) -> list[float]:
        """Return the prices without the first 0, 1, ... experts of `order`, never falling."""
        found = [0.0]
        for count in range(1, len(order) + 1):
            found.append(max(found[-1], self.price(order[:count])))
        return found

    @torch.no_grad()
    def _routed(self, kept: Sequence[int]) -> tuple[Tensor, Tensor]:
        numbers = torch.tensor(list(kept), device=self.hidden.device)
        router = cut_router(self.router, self.routing.count, numbers.tolist())
        index, weights = self.routing.route(router, self.hidden)
        return numbers[index], weights

    def _summed(self, index: Tensor, weights: Tensor) -> Tensor:
        return (self.effects.gather(1, index) * weights.to(self.effects)).sum(-1)


def routed_tokens(
    model: nn.Module,
    routings: Mapping[str, Routing],
    blocks: TokenBlocks,
    settings: CalibrationSettings,
    track: Callable[[Iterator[Batch]], Iterator[Batch]] = iter,
) -> dict[str, RoutedTokens]:
    """Run the model over `blocks` once and return the tokens of each module of experts."""
    device = next(model.parameters()).device
    passes = {name: _Pass(model, routing) for name, routing in routings.items()}
    tokens = 0
    for batch in track(batches(blocks, settings.tokens_per_batch, 0, device)):
        with frozen_eval_with_graph(model, backward=True), _recorded(passes.values()):
            attention = None if bool(batch.mask.all()) else batch.mask.long()
            logits = model(
                input_ids=batch.ids, attention_mask=attention, use_cache=False
            ).logits
            summed_loss(logits, batch, settings).backward()
        for each in passes.values():
            each.add(batch.mask.flatten())
        tokens += int(batch.mask.sum())
    return {name: each.tokens(tokens) for name, each in passes.items() if each.parts}


def few_enough(model: nn.Module, routings: Mapping[str, Routing], wanted: int) -> int:
    """Return as many tokens as take no more memory than the model, at most `MOST_TOKENS`."""
    held = sum(p.numel() * p.element_size() for p in model.parameters())
    per_token = sum(
        4 * (_width(model, routing) + 2 * routing.count) for routing in routings.values()
    )
    return min(wanted, MOST_TOKENS, max(2, held // max(1, per_token)))


def _width(model: nn.Module, routing: Routing) -> int:
    router = model.get_submodule(routing.router)
    return max(p.shape[-1] for p in router.parameters() if p.dim() == 2)


class _Pass:
    """The tensors of one module of experts in one batch, and what was made of earlier ones."""

    def __init__(self, model: nn.Module, routing: Routing):
        self.routing = routing
        self.router = model.get_submodule(routing.router)
        self.experts: Any = model.get_submodule(routing.experts)
        self.parts: list[tuple[Tensor, Tensor, Tensor]] = []
        self.hidden: Tensor | None = None
        self.gradient: Tensor | None = None

    def see_router(self, module: nn.Module, args: Any, output: Any) -> None:
        self.hidden = args[0].detach().flatten(0, -2)

    def see_experts(self, module: nn.Module, args: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(self._keep_gradient)

    def _keep_gradient(self, gradient: Tensor) -> None:
        self.gradient = gradient.detach().flatten(0, -2)

    @torch.no_grad()
    def add(self, real: Tensor) -> None:
        """Reduce the batch's tensors to a number for each real token and expert."""
        if self.hidden is None or self.gradient is None:
            return
        hidden, gradient = self.hidden, self.gradient
        if len(hidden) == len(real):
            hidden, gradient = hidden[real], gradient[real]
        effects, norms = [], []
        for expert in self.experts.kept:
            output = self.experts.output(expert, hidden)
            effects.append(torch.linalg.vecdot(output, gradient.to(output)))
            norms.append(output.norm(dim=-1))
        self.parts.append((hidden, torch.stack(effects, 1), torch.stack(norms, 1)))
        self.hidden = self.gradient = None

    def tokens(self, of_text: int) -> RoutedTokens:
        hidden, effects, norms = (torch.cat(part) for part in zip(*self.parts, strict=True))
        return RoutedTokens(self.routing, self.router, hidden, effects, norms, of_text)


@contextmanager
def _recorded(passes: Any) -> Iterator[None]:
    after = [(each.router, each.see_router) for each in passes]
    after += [(each.experts, each.see_experts) for each in passes]
    with attach_hooks(after=after):
        yield
