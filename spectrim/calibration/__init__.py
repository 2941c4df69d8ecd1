"""Calibration: drive a model over tokens and sum what decompositions need."""

from spectrim.calibration.covariance_format import MemoryBudget, Wide
from spectrim.calibration.in_memory import CalibrationSettings, calibrate

__all__ = [
    "CalibrationSettings",
    "MemoryBudget",
    "Wide",
    "calibrate",
]
