"""SoKA: `W' = W + sum_k ((E_k + dE_k) (x) (F_k + dF_k) - E_k (x) F_k)`, Kronecker terms.

The principal terms of the Kronecker-product SVD of the weight train. A term has the numbers of
two small matrices and may have full rank. How many terms train is chosen for each weight: as
many as hold `energy` of it, at most up to the elbow of the logarithmic spectrum and `r_max`.
As a LoRA the update is exact at its numerical rank, which is usually full: state a rank to
truncate it, or merge it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spectrim.adapters._spectral import AdaptedWeight, Parts, Tensors, check_counts
from spectrim.errors import InputError
from spectrim.linalg.kronecker_svd import kronecker_sum, kronecker_svd, square_blocks

TITLE = "SoKA"
REFERENCE = "Chen et al., 2025, arXiv:2506.15251"
LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Options:
    """r: terms that train; None: by energy and elbow, at most `r_max`."""

    r: int | None = None
    energy: float = 0.95
    r_max: int = 16

    def __post_init__(self) -> None:
        check_counts(r=1 if self.r is None else self.r, r_max=self.r_max, energy=self.energy)
        if self.energy > 1:
            raise InputError(f"energy is {self.energy}, expected a share of at most 1")


def start(weight: AdaptedWeight, options: Options) -> Parts:
    rows, columns = weight.weight.shape
    first, spectrum, second = kronecker_svd(weight.weight, square_blocks((rows, columns)))
    count = min(options.r or chosen_rank(spectrum, options), len(spectrum))
    root = spectrum[:count].sqrt()[:, None, None]
    first, second = root * first[:count], root * second[:count]
    trained = {
        "first_change": torch.zeros_like(first),
        "second_change": torch.zeros_like(second),
    }
    return Parts(trained, {"first": first, "second": second})


def delta(tensors: Tensors, options: Options) -> Tensor:
    first_change, second_change = tensors["first_change"], tensors["second_change"]
    return kronecker_sum(
        torch.cat([first_change, tensors["first"]]),
        torch.cat([tensors["second"] + second_change, second_change]),
    )


def chosen_rank(spectrum: Tensor, options: Options) -> int:
    """Return the smaller of the energy's and the elbow's rank, within 1 .. r_max."""
    shares = spectrum.square().cumsum(0) / spectrum.square().sum().clamp_min(1e-300)
    by_energy = int((shares < options.energy).sum()) + 1
    return max(1, min(by_energy, elbow(spectrum), options.r_max))


def elbow(spectrum: Tensor) -> int:
    """Return how many values lie before the point farthest below the chord of log s."""
    positive = spectrum[spectrum > 1e-12 * spectrum[0]].log()
    if len(positive) < 3:
        return len(spectrum)
    along = torch.linspace(0, 1, len(positive), dtype=positive.dtype)
    chord = positive[0] + along * (positive[-1] - positive[0])
    return max(1, int((chord - positive).argmax()))
