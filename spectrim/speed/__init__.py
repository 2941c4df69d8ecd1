"""How fast a model runs and how much memory it takes, dense against compressed in one run."""

from spectrim.speed.contestants import SpeedVariant, make_variants
from spectrim.speed.random_models import SHAPES, factorize_randomly, random_model
from spectrim.speed.running import Case, SpeedResult, SpeedRow, SpeedSettings, bench_speed

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
