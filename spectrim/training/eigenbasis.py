"""The eigenbases of a calibration's covariances, by parameter, for `optim/kfac_adamw.py`.

    left' = Q_g^T left,   right' = right Q_x,   W' = Q_g^T W Q_x for what stayed dense,
    components' = [left^T Q_g, right Q_x] of an elastic layer,
    C_g = Q_g diag Q_g^T,   C_x = Q_x diag Q_x^T

Layers without statistics, norms and biases keep their coordinates.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from spectrim.errors import InputError
from spectrim.layers import ElasticLinear
from spectrim.layers.lowrank import LowRankLinear
from spectrim.layers.shared_basis import SharedBasisLinear
from spectrim.linalg.covariance import dense
from spectrim.models.linear import is_linear
from spectrim.optim import OPTIMIZERS
from spectrim.optim.kfac_adamw import Rotation, eigenvectors
from spectrim.statistics import Calibration

REQUIRES = ("gradient_covariance", "input_covariance")


Rotations = dict[str, Rotation]


def requires(optimizer: str) -> tuple[str, ...]:
    """Return the statistics that an optimizer's coordinates come from. Raises InputError."""
    return REQUIRES if getattr(OPTIMIZERS.get(optimizer), "NEEDS_COVARIANCES", False) else ()


def rotations(
    model: nn.Module, names: Iterable[str], optimizer: str, calibration: Calibration | None
) -> Rotations:
    """Return rotations by parameter name, for a model with balanced parameters.

    Raises InputError without the statistics.

    Memory: in^2 + out^2 numbers of 4 bytes per layer, an input's basis once for all that
    read it; (in + out)^2 for an elastic layer.
    """
    if not requires(optimizer):
        return {}
    found: Rotations = {}
    source = _Eigenvectors(_checked(calibration))
    for name in names:
        path, _, own = name.rpartition(".")
        rotation = _rotation(model, path, own, source)
        if rotation is not None:
            device = model.get_submodule(path).get_parameter(own).device
            found[name] = Rotation(_to(rotation.left, device), _to(rotation.right, device))
    return found


def basis_key(optimizer: str, calibration: Calibration | None) -> dict[str, str]:
    """Return what a result depends on: a hash of the statistics behind the rotations."""
    if not requires(optimizer):
        return {}
    given = _checked(calibration)
    return {"statistics": given.digest(given.groups, REQUIRES)}


def _checked(calibration: Calibration | None) -> Calibration:
    if calibration is None or not set(REQUIRES) <= set(calibration.states):
        raise InputError(
            "optimizer 'kfac_adamw' needs input and gradient covariances: give their "
            "statistics, as `spectrim.refine` does, or set optimizer to 'adamw'"
        )
    return calibration


def _rotation(model: nn.Module, path: str, own: str, source: _Eigenvectors) -> Rotation | None:
    """Return the rotation of the parameter `own` of the module at `path`: a weight, dense or a
    factor, or the components of an elastic layer."""
    module = model.get_submodule(path)
    if path in source.calibration.groups and isinstance(module, ElasticLinear):
        return _elastic_rotation(module, own, source.outputs(path), source.inputs(path))
    if own != "weight":
        return None
    if path in source.calibration.groups and is_linear(module):
        sides = source.outputs(path), source.inputs(path)
        return Rotation(*(reversed(sides) if isinstance(module, Conv1D) else sides))
    parent, _, factor = path.rpartition(".")
    layer = model.get_submodule(parent)
    if parent not in source.calibration.groups or not _has_factors(layer):
        return None
    if factor == "left":
        return Rotation(left=source.outputs(parent))
    return Rotation(right=source.inputs(parent))


def _elastic_rotation(
    layer: ElasticLinear, own: str, outputs: Tensor | None, inputs: Tensor | None
) -> Rotation | None:
    if own == "weight":
        return Rotation(*((inputs, outputs) if layer.transposed else (outputs, inputs)))
    if own != "components":
        return None
    left = torch.eye(layer.out_features) if outputs is None else outputs
    right = torch.eye(layer.in_features) if inputs is None else inputs
    return Rotation(right=torch.block_diag(left, right.to(left.device)))


def _has_factors(layer: nn.Module) -> bool:
    return isinstance(layer, LowRankLinear | SharedBasisLinear)


class _Eigenvectors:
    """float32 (n, n), those of an input once for all layers that read it; None where no
    token came, or no loss."""

    def __init__(self, calibration: Calibration):
        self.calibration = calibration
        self._inputs: dict[str, Tensor | None] = {}

    def inputs(self, name: str) -> Tensor | None:
        group = self.calibration.groups[name]
        if group not in self._inputs:
            self._inputs[group] = self._of(name, "input_covariance")
        return self._inputs[group]

    def outputs(self, name: str) -> Tensor | None:
        return self._of(name, "gradient_covariance")

    def _of(self, name: str, statistic: str) -> Tensor | None:
        if not self.calibration.counts[name]:
            return None
        covariance = dense(self.calibration.layer(name)[statistic])
        return eigenvectors(covariance) if covariance.any() else None


def _to(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor.to(device)
