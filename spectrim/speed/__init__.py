"""How fast a model runs and how much memory it takes, dense against compressed in one run."""

from spectrim.speed.contestants import Contestant, line_up
from spectrim.speed.random_models import SHAPES, factor_randomly, random_model
from spectrim.speed.running import Case, SpeedResult, SpeedRow, SpeedSettings, bench_speed

__all__ = [
    "SHAPES",
    "Case",
    "Contestant",
    "SpeedResult",
    "SpeedRow",
    "SpeedSettings",
    "bench_speed",
    "factor_randomly",
    "line_up",
    "random_model",
]
