"""The registry of statistics."""

from spectrim.registry import Registry

STATISTICS = Registry("statistic", "spectrim.statistics")
