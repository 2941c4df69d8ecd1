"""Speed and memory of a model, dense against compressed in one run."""

from spectrim.evaluation.speed.random_models import SHAPES, factorize_randomly, random_model
from spectrim.evaluation.speed.run import (
    Case,
    SpeedResult,
    SpeedRow,
    SpeedSettings,
    bench_speed,
)
from spectrim.evaluation.speed.variants import SpeedVariant, make_variants

__all__ = [
    "SHAPES",
    "Case",
    "SpeedResult",
    "SpeedRow",
    "SpeedSettings",
    "SpeedVariant",
    "bench_speed",
    "factorize_randomly",
    "make_variants",
    "random_model",
]
