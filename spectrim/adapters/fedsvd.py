"""FedSVD: `W' = W + (alpha / r) B A`, clients train B alone, the server refactors `B A`.

    B <- sum_k w_k B_k,    B A = U S V^T,    A <- V_r^T,  B <- U_r S_r

With A common, the average of the products is the product of the averages, and noise on B alone
enters linearly. After each round A has the directions that the clients' updates have taken.
`aggregate` is the server, on the files' tensors; `private_step` clips each example's gradient
and adds noise by Opacus (extra `privacy`). The update is a LoRA as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.adapters._spectral import AdaptedWeight, Pair, Parts, Tensors, check_counts
from spectrim.errors import InputError

TITLE = "FedSVD"
REFERENCE = "Lee et al., 2025, arXiv:2505.12805"
LEARNING_RATE = 3e-3
STORED = True
"""A is drawn, and then the server's; it is stored with the adapter."""


@dataclass(frozen=True)
class Options:
    """r: rank of the update, scaled by alpha / r."""

    r: int = 8
    alpha: float = 8.0

    def __post_init__(self) -> None:
        check_counts(r=self.r, alpha=self.alpha)


def start(weight: AdaptedWeight, options: Options) -> Parts:
    rows, columns = weight.weight.shape
    down = weight.weight.new_empty(min(options.r, weight.full_rank), columns)
    nn.init.kaiming_uniform_(down, a=math.sqrt(5))
    return Parts({"B": weight.weight.new_zeros(rows, len(down))}, {"A": down})


def pair(tensors: Tensors, options: Options) -> Pair:
    return options.alpha / options.r * tensors["B"], tensors["A"]


def refactor(up: Tensor, down: Tensor) -> Pair:
    """Return B (out, r) and A (r, in) of the same product, A with orthonormal rows.

    A zero B leaves both as they are, as its directions would be arbitrary.
    """
    if not up.any():
        return up, down
    outer, upper = torch.linalg.qr(up.double())
    inner, lower = torch.linalg.qr(down.double().T)
    core, spectrum, turned = torch.linalg.svd(upper @ lower.T)
    return (outer @ core * spectrum).to(up), (turned @ inner.T).to(down)


def aggregate(
    states: Sequence[Mapping[str, Tensor]], weights: Sequence[float] | None = None
) -> dict[str, Tensor]:
    """Return the server's next state from the clients' (`get_peft_model_state_dict`).

    weights: of the clients, e.g. their numbers of examples; None: all alike. Clients start
    their optimizers anew. Raises InputError for clients that do not share A.
    """
    if not states or (weights is not None and len(weights) != len(states)):
        raise InputError(f"{len(states)} clients and {len(weights or ())} weights do not match")
    shares = torch.tensor([1.0] * len(states) if weights is None else list(weights)).double()
    shares = shares / shares.sum()
    result = dict(states[0])
    for key in [key for key in result if key.endswith("_params.B")]:
        fixed = key.removesuffix("_params.B") + "_fixed.A"
        if any(not torch.equal(state[fixed], result[fixed]) for state in states):
            raise InputError(f"the clients have different {fixed}; start all from one file")
        mean = sum(
            share * state[key].double() for share, state in zip(shares, states, strict=True)
        )
        up, down = refactor(torch.as_tensor(mean), result[fixed].double())
        result[key], result[fixed] = up.to(states[0][key]), down.to(states[0][fixed])
    return result


def private_step(optimizer: Any, example_losses: Callable[[], Iterable[Tensor]]) -> list[float]:
    """Take one step of DP-SGD and return the examples' losses.

    optimizer: Opacus' `DPOptimizer` around any optimizer of the trained parameters; it clips,
    adds the noise and divides by its `expected_batch_size`. example_losses: one scalar for each
    example, made lazily, so that one graph is held at a time.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    rows: list[Sequence[Tensor]] = []
    losses = []
    for loss in example_losses():
        rows.append(torch.autograd.grad(loss, parameters, materialize_grads=True))
        losses.append(float(loss.detach()))
    for parameter, gradients in zip(parameters, zip(*rows, strict=True), strict=True):
        parameter.grad_sample = torch.stack(gradients)
    optimizer.step()
    optimizer.zero_grad()
    return losses
