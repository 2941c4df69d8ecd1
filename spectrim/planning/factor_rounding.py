"""Round the stored matrices of a factored layer, by a quantizer that may see the metric.

    W_r = A B,   min || L_out^T (W_r - Q(A) Q(B)) L_in ||,   C_x = L_in L_in^T,   C_g = ...

B is rounded with the covariances C_x and A^T C_g A. A is then fitted to Q(B),

    A = W_r C_x Q(B)^T (Q(B) C_x Q(B)^T)^-1,

and rounded with Q(B) C_x Q(B)^T and C_g. Of a pivoted layer A = [I; C] in the order of the
outputs, and C is rounded with the part of C_g that belongs to its rows, without a fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.errors import InputError
from spectrim.layers import FactoredLinear
from spectrim.layers.lowrank import LowRankLinear
from spectrim.layers.pivoted import PivotedLinear
from spectrim.layers.quantized import QUANTIZERS, CompressedLinear
from spectrim.linalg.covariance import Covariance
from spectrim.linalg.psd import add_damping

SINGULAR = 1e-9
"""Of the mean diagonal, added before rounded factors are inverted."""
_KINDS = (LowRankLinear, PivotedLinear)


@dataclass(frozen=True)
class _Problem:
    name: str
    weight: Tensor
    bias: Tensor | None
    statistics: Mapping[str, Tensor]

    def statistic(self, name: str) -> Any:
        return self.statistics[name]


def round_matrix(
    name: str, child: nn.Linear, statistics: Any, quantizer: tuple[str, Any]
) -> CompressedLinear:
    """Return the quantized linear child.

    Args:
        statistics: of its inputs and output gradients; read only if the quantizer needs them.
        quantizer: name and options.
    """
    bias = None if child.bias is None else child.bias.detach()
    problem = _Problem(name, child.weight.detach(), bias, statistics)
    return QUANTIZERS.get(quantizer[0]).compress(problem, quantizer[1])


def round_factors(
    name: str, layer: FactoredLinear, statistics: Any, quantizer: tuple[str, Any]
) -> dict[str, CompressedLinear]:
    """Return the quantized children of `layer` by their names.

    Raises InputError for a layer type without plain matrices if the quantizer needs statistics.
    """
    children = {n: c for n, c in layer.named_children() if isinstance(c, nn.Linear)}
    if not QUANTIZERS.get(quantizer[0]).REQUIRES:
        return {n: round_matrix(f"{name}.{n}", c, {}, quantizer) for n, c in children.items()}
    if not isinstance(layer, _KINDS):
        raise InputError(
            f"'{quantizer[0]}' rounds plain or pivoted factors; choose --layer lowrank, or "
            "quantize by rtn"
        )
    inputs, outputs = (
        _dense(statistics[each]) for each in ("input_covariance", "gradient_covariance")
    )
    (first, near), (second, far) = children.items()
    left, rows = _left(layer)
    seen = {"input_covariance": inputs, "gradient_covariance": left.T @ outputs @ left}
    rounded = {first: round_matrix(f"{name}.{first}", near, seen, quantizer)}
    if not len(rows):
        return rounded | {
            second: round_matrix(f"{name}.{second}", far, {}, ("rtn", quantizer[1]))
        }
    right = rounded[first].dense()[0]
    gram = add_damping(right @ inputs @ right.T, SINGULAR)
    if isinstance(layer, LowRankLinear):
        fitted = torch.linalg.solve(gram, right @ inputs @ layer.dense()[0].T).T
        far = _with_weight(far, fitted)
    seen = {"input_covariance": gram, "gradient_covariance": outputs[rows][:, rows]}
    return rounded | {second: round_matrix(f"{name}.{second}", far, seen, quantizer)}


def _left(layer: LowRankLinear | PivotedLinear) -> tuple[Tensor, Tensor]:
    """Return A (out, r), float64, and the outputs (n,) whose rows are stored in it."""
    if isinstance(layer, LowRankLinear):
        left = layer.left.weight.detach().double()
        return left, torch.arange(len(left), device=left.device)
    others = layer.coefficients.weight.detach().double()
    unit = torch.eye(layer.rank, dtype=others.dtype, device=others.device)
    position = layer.position()
    rows = (position >= layer.rank).nonzero().flatten()
    return torch.cat([unit, others])[position], rows


def _with_weight(child: nn.Linear, weight: Tensor) -> nn.Linear:
    made = nn.Linear(child.in_features, child.out_features, bias=False, device="meta")
    made.weight = nn.Parameter(weight.to(child.weight), requires_grad=False)
    made.bias = child.bias
    return made


def _dense(covariance: Any) -> Tensor:
    dense = covariance.dense() if isinstance(covariance, Covariance) else covariance
    return dense.double()
