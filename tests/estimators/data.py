"""Generated data with a known answer."""

from __future__ import annotations

from itertools import permutations

import numpy as np


def subspaces(
    count: int, dim: int, width: int, rows: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a union of random subspaces, and which one each is from."""
    random = np.random.default_rng(seed)
    data = [
        random.normal(size=(rows, dim)) @ np.linalg.qr(random.normal(size=(width, dim)))[0].T
        for _ in range(count)
    ]
    return np.concatenate(data), np.repeat(np.arange(count), rows)


def agreement(found: np.ndarray, truth: np.ndarray) -> float:
    """Accuracy under the best naming of the clusters."""
    names = np.unique(truth)
    return max(float((np.array(order)[found] == truth).mean()) for order in permutations(names))
