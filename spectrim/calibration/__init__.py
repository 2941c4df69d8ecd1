"""Calibration: drive a model over tokens and sum what decompositions need."""

from spectrim.calibration.covariance_format import MemoryBudget, Wide
from spectrim.calibration.in_memory import CalibrationSettings, calibrate
from spectrim.statistics._result import Calibration, LayerStatistics, PooledStatistics

__all__ = [
    "Calibration",
    "CalibrationSettings",
    "LayerStatistics",
    "MemoryBudget",
    "PooledStatistics",
    "Wide",
    "calibrate",
]
