"""Bounds on a probability from counts, with a stated chance to fail."""

from __future__ import annotations

from typing import Any

import numpy as np


def clopper_pearson_lower(hits: Any, draws: int, failure: float) -> Any:
    """Return a lower bound of the probability of a hit, wrong with chance at most `failure`.

    The exact bound: the `failure` quantile of Beta(hits, draws - hits + 1), 0 without hits, and
    `failure^(1/draws)` if all are.
    """
    from scipy.stats import beta

    hits = np.asarray(hits)
    bound = beta.ppf(failure, np.maximum(hits, 1), draws - hits + 1)
    return np.where(hits > 0, bound, 0.0)
