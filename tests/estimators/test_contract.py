"""Every estimator passes scikit-learn's own checks and is listed with its source."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("sklearn")

from sklearn.utils.estimator_checks import parametrize_with_checks

from spectrim.estimators import (
    ESTIMATORS,
    FrechetSDR,
    RandomizedSmoothing,
    SelfExpressiveClustering,
    SubspaceDetector,
    SupervisedDictionary,
)

MODULES = {name: ESTIMATORS.get(name) for name in ESTIMATORS.names()}
OTHERS = [
    SubspaceDetector(0.9, distance="mahalanobis"),
    SubspaceDetector(1, distance="cosine"),
    SupervisedDictionary(variant="feature", max_iter=50),
    FrechetSDR(estimator="mlp", epochs=2),
    SelfExpressiveClustering(layers=(2,), epochs=2, structure=0.1),
    RandomizedSmoothing(n=50, n0=20, copies=2),
]


@pytest.mark.few(150)
@parametrize_with_checks(
    [
        *(
            module.ESTIMATOR(**getattr(module, "QUICK", {}))
            for module in MODULES.values()
            if not hasattr(module, "TAKES")
        ),
        *OTHERS,
    ]
)
def test_the_contract_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.parametrize("name", MODULES)
def test_entries_state_equation_and_source(name):
    module = MODULES[name]
    assert "`" in ESTIMATORS.summary(name)
    assert "arXiv:" in module.REFERENCE
    assert len(module.__doc__.split()) > 40
    assert module.ESTIMATOR.__module__ == module.__name__


@pytest.mark.slow
def test_everything_imports_and_fits_without_transformers():
    code = """
import sys
sys.modules["transformers"] = None
import numpy as np
from spectrim.estimators import ESTIMATORS, SubspaceDetector
from spectrim.nn import NN
from spectrim.optim import OPTIMIZERS
found = [registry.get(name) for registry in (ESTIMATORS, NN) for name in registry.names()]
assert len(found) > 15
assert OPTIMIZERS.get("riemannian_sgd").OPTIMIZER
rows = np.random.default_rng(0).normal(size=(20, 4))
assert SubspaceDetector(2).fit(rows).predict(rows).shape == (20,)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_the_room_needs_neither_transformers_nor_scikit_learn_to_be_listed():
    code = """
import sys
sys.modules["sklearn"] = None
from spectrim.estimators import ESTIMATORS, SubspaceDetector
assert len(ESTIMATORS.names()) == %d
assert "transformers" not in sys.modules
try:
    SubspaceDetector()
except Exception as error:
    assert "spectrim[estimators]" in str(error), error
else:
    raise SystemExit("constructed without scikit-learn")
"""
    subprocess.run([sys.executable, "-c", code % len(MODULES)], check=True)
