"""scikit-learn's base classes; where it is not installed, stand-ins that name the extra.

So the registry lists every estimator in any installation, and constructing one is what needs
the extra.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from spectrim.errors import InputError

try:
    from sklearn.base import (
        BaseEstimator,
        ClassifierMixin,
        ClassNamePrefixFeaturesOutMixin,
        ClusterMixin,
        OutlierMixin,
        RegressorMixin,
        TransformerMixin,
        clone,
    )
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError:

    def _missing(*_: Any, **__: Any) -> Any:
        raise InputError(
            "estimators need scikit-learn and SciPy; pip install 'spectrim[estimators]'"
        )

    BaseEstimator = type("BaseEstimator", (), {"__new__": _missing})
    ClassifierMixin = type("ClassifierMixin", (), {})
    ClassNamePrefixFeaturesOutMixin = type("ClassNamePrefixFeaturesOutMixin", (), {})
    ClusterMixin = type("ClusterMixin", (), {})
    OutlierMixin = type("OutlierMixin", (), {})
    RegressorMixin = type("RegressorMixin", (), {})
    TransformerMixin = type("TransformerMixin", (), {})
    clone = check_random_state = check_classification_targets = _missing
    check_is_fitted = validate_data = _missing

Array = np.ndarray[Any, Any]


def read_rows(estimator: Any, X: Any, **options: Any) -> Array:
    """Return rows as float64 (n, d), checked; `reset=False` holds them to those of `fit`."""
    rows: Array = validate_data(estimator, X, dtype=np.float64, **options)
    return rows


def read_pairs(estimator: Any, X: Any, y: Any, **options: Any) -> tuple[Array, Array]:
    """Return rows as float64 (n, d) and targets, checked together."""
    rows, targets = validate_data(estimator, X, y, dtype=np.float64, **options)
    return rows, targets


def to_tensor(array: Array) -> Tensor:
    """Return a float64 tensor, which shares memory where the array may be written to."""
    return torch.from_numpy(np.require(array, dtype=np.float64, requirements=["C", "W"]))


def torch_generator(random_state: Any) -> torch.Generator:
    """Return a generator of torch seeded from a `random_state` of scikit-learn."""
    seed = check_random_state(random_state).randint(np.iinfo(np.int32).max)
    return torch.Generator().manual_seed(int(seed))


__all__ = [
    "Array",
    "BaseEstimator",
    "ClassNamePrefixFeaturesOutMixin",
    "ClassifierMixin",
    "ClusterMixin",
    "OutlierMixin",
    "RegressorMixin",
    "TransformerMixin",
    "check_classification_targets",
    "check_is_fitted",
    "check_random_state",
    "clone",
    "read_pairs",
    "read_rows",
    "to_tensor",
    "torch_generator",
]
