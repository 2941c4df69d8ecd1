"""The stored size of a quantized matrix, as an allocation counts it."""

from __future__ import annotations

import json
from dataclasses import asdict

from spectrim.allocation import Storage
from spectrim.layers.quantized import storage_in
from spectrim.planning.settings import PlanningSettings


def storage_of(settings: PlanningSettings) -> Storage | None:
    """Return `ceil(bytes(rows, columns) / bytes per number)`; None without a quantizer."""
    quantizer = settings.quantizer
    if quantizer is None:
        return None
    return storage_in(quantizer.name, quantizer.options, quantizer.dtype)


def rounded_for(settings: PlanningSettings) -> str:
    """Return all that determines a layer's quantization error besides its weight, as text."""
    if settings.quantizer is None:
        return ""
    parts = [asdict(settings.quantizer), settings.layer, dict(settings.layer_options)]
    return json.dumps(parts, sort_keys=True)
