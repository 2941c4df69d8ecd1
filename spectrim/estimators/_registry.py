from __future__ import annotations

from spectrim.registry import Registry

ESTIMATORS = Registry("estimator", "spectrim.estimators", declares="ESTIMATOR")
