"""The catalog of names: every registry, with the needs and references of its entries."""

from __future__ import annotations

from typing import Any

from spectrim.adapters import ADAPTERS
from spectrim.allocation import ALLOCATORS
from spectrim.data import SOURCES
from spectrim.data.tasks import FORMATS
from spectrim.decompositions import DECOMPOSITIONS, TABLE_METHODS
from spectrim.estimators import ESTIMATORS
from spectrim.evaluation import EVALUATORS
from spectrim.layers import LAYERS
from spectrim.layers.quantized import QUANTIZERS
from spectrim.nn import NN
from spectrim.optim import OPTIMIZERS
from spectrim.pruning import IMPORTANCE
from spectrim.pruning.experts import EXPERT_ORDERS
from spectrim.refinement import REFINEMENTS
from spectrim.registry import Registry
from spectrim.statistics import STATISTICS
from spectrim.training.pretraining import PRETRAINING

REGISTRIES: dict[str, Registry] = {
    "methods": DECOMPOSITIONS,
    "allocations": ALLOCATORS,
    "layers": LAYERS,
    "embeddings": TABLE_METHODS,
    "quantizers": QUANTIZERS,
    "refinements": REFINEMENTS,
    "pretraining": PRETRAINING,
    "optimizers": OPTIMIZERS,
    "adapters": ADAPTERS,
    "importance": IMPORTANCE,
    "experts": EXPERT_ORDERS,
    "tasks": FORMATS,
    "sources": SOURCES,
    "statistics": STATISTICS,
    "evaluators": EVALUATORS,
    "modules": NN,
    "estimators": ESTIMATORS,
}


def list_methods() -> dict[str, list[dict[str, Any]]]:
    """Return by kind each entry's name, summary, needs and reference."""
    return {
        kind: [_entry(registry, name) for name in registry.names()]
        for kind, registry in REGISTRIES.items()
    }


def _entry(registry: Registry, name: str) -> dict[str, Any]:
    module = registry.get(name)
    needs = list(getattr(module, "REQUIRES", ()))
    if getattr(module, "NEEDS_GRADIENT", False):
        needs.append("a backward pass")
    if getattr(module, "NEEDS_ORIGINAL", False):
        needs.append("the original model")
    return {
        "name": name,
        "summary": registry.summary(name),
        "needs": needs,
        "reference": getattr(module, "REFERENCE", ""),
    }
