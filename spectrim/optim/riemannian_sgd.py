"""Riemannian SGD on Grassmannians: `S <- exp_S(-lr (I - S S^T) m)`, `m <- momentum m + g`.

For parameters of class `GrassmannParameter`, bases S (..., d, k): the momentum buffer m holds
Euclidean gradients and is not transported; its horizontal part is followed along the exact
geodesic, `S V cos(-lr s) V^T + U sin(-lr s) V^T` with the thin SVD U s V^T, and a QR every
`qr_every` steps removes accumulated rounding. They have no weight decay, which would not change
a subspace. All other parameters get SGD as in torch. Cost: one SVD of (d, k) per subspace and
step, O(d k^2); one buffer per parameter.

A layer whose bases this trains: `spectrim.nn.grassmann_linear`. It also trains one orthonormal
basis that several layers share. Source: Wang et al., 2023, arXiv:2308.01547.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.errors import InputError
from spectrim.linalg.grassmann import geodesic_step, horizontal, orthonormalize
from spectrim.linalg.manifold_parameter import GrassmannParameter
from spectrim.optim._state import loss_of

REFERENCE = "Wang et al., 2023, arXiv:2308.01547 (Riemannian SGD of GCR)"
REDUCES_TO = ("SGD", {"momentum": 0.0})


class RiemannianSGD(torch.optim.Optimizer):
    """SGD with momentum; steps along geodesics for `GrassmannParameter`s.

    weight_decay is of the other parameters alone. Raises InputError for a negative setting.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        qr_every: int = 5,
    ):
        if min(lr, momentum, weight_decay) < 0 or qr_every < 1:
            raise InputError(
                f"lr={lr:g}, momentum={momentum:g}, weight_decay={weight_decay:g} and "
                f"qr_every={qr_every}; expected none below 0, and qr_every from 1"
            )
        settings = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, {**settings, "qr_every": qr_every})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; return the loss of `closure`, if there is one."""
        loss = loss_of(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        curved = isinstance(parameter, GrassmannParameter)
        if group["weight_decay"] and not curved:
            gradient = gradient.add(parameter, alpha=group["weight_decay"])
        if group["momentum"]:
            gradient = self._momentum(parameter, gradient, group["momentum"])
        if curved:
            self._move(parameter, gradient, group)
        else:
            parameter.add_(gradient, alpha=-group["lr"])

    def _move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        """Step along a geodesic, in float32 at least."""
        state = self.state[parameter]
        state.setdefault("step", torch.zeros(())).add_(1)
        wide = torch.promote_types(parameter.dtype, torch.float32)
        basis = parameter.detach().to(wide)
        moved = geodesic_step(basis, horizontal(basis, gradient.to(wide)), -group["lr"])
        if int(state["step"]) % group["qr_every"] == 0:
            moved = orthonormalize(moved)
        parameter.copy_(moved)

    def _momentum(self, parameter: Tensor, gradient: Tensor, momentum: float) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = gradient.clone()
        else:
            state["momentum_buffer"].mul_(momentum).add_(gradient)
        return state["momentum_buffer"]


OPTIMIZER = RiemannianSGD


def state_bytes(rows: int, columns: int, momentum: float = 0.9) -> int:
    """Return the bytes of the momentum buffer of a float32 matrix."""
    return 4 * rows * columns if momentum else 0


def split_parameters(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the parameters on Grassmannians, for this optimizer, and all others."""
    curved = [p for p in module.parameters() if isinstance(p, GrassmannParameter)]
    known = {id(p) for p in curved}
    return list(curved), [p for p in module.parameters() if id(p) not in known]
