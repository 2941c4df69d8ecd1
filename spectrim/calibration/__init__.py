"""Calibration: drive a model over tokens and sum what decompositions need."""

from spectrim.calibration.forms import MemoryBudget, Wide
from spectrim.calibration.result import Calibration, LayerStatistics, PooledStatistics
from spectrim.calibration.whole_model import CalibrationSettings, calibrate

__all__ = [
    "Calibration",
    "CalibrationSettings",
    "LayerStatistics",
    "MemoryBudget",
    "PooledStatistics",
    "Wide",
    "calibrate",
]
