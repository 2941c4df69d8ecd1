"""REAP: least mean router weight times length of the output, over the expert's own tokens.

    score_e = mean over x routed to e of w_e(x) ||f_e(x)||

The same number of experts leaves every block. An expert without tokens has score zero.
"""

from __future__ import annotations

import torch

from spectrim.calibration.routed_tokens import RoutedTokens
from spectrim.registry import NoOptions

REFERENCE = "Lasby et al., 2025, arXiv:2510.13999"
UNIFORM = True


def order(tokens: RoutedTokens, options: NoOptions) -> list[int]:
    index, weights = tokens.choices
    lengths = tokens.norms.gather(1, index).double() * weights.double()
    zeros = torch.zeros(tokens.routing.count, dtype=torch.float64, device=index.device)
    summed = zeros.index_add(0, index.flatten(), lengths.flatten())
    counts = zeros.index_add(0, index.flatten(), torch.ones_like(lengths).flatten())
    scores = summed / counts.clamp_min(1)
    return scores.argsort(stable=True)[: tokens.most_removed].tolist()
