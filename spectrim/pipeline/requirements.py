"""The calibration that a recipe needs: which statistics, in which form, averaged or not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spectrim.allocation import ALLOCATORS
from spectrim.calibration import Wide
from spectrim.decompositions import DECOMPOSITIONS
from spectrim.layers.quantized import QUANTIZERS
from spectrim.planning.predicted import NEEDED
from spectrim.refinement import required_statistics

if TYPE_CHECKING:
    from spectrim.pipeline.recipe import Recipe


def statistics_for(recipe: Recipe) -> tuple[str, ...]:
    """Return the statistics that method, allocation, quantizer and loss prediction read."""
    method = DECOMPOSITIONS.get(recipe.method).REQUIRES
    allocation = ALLOCATORS.get(recipe.allocation).REQUIRES
    correction = recipe.correction
    quantizer = QUANTIZERS.get(correction.quantizer).REQUIRES if correction else ()
    return tuple(sorted({*method, *allocation, *NEEDED, *quantizer}))


def wide_covariances_for(recipe: Recipe) -> Wide:
    """Return how covariances of wider sides are stored.

    "projected" by the layer's weight is enough if they are read only to decompose the layer
    itself and to predict that loss.
    """
    method = DECOMPOSITIONS.get(recipe.method)
    reads = set(NEEDED) & set(method.REQUIRES)
    needs_full = (
        not hasattr(method, "metric"),
        bool(reads) and not getattr(method, "THROUGH_WEIGHT", False),
        recipe.calibration.wide_covariances == "full",
        recipe.calibration.covariance_bytes is not None,
        recipe.sharing.rule != "none",
        recipe.correction is not None,
        recipe.quantization is not None,
        any(required_statistics(step.name, step.options) for step in recipe.refinement),
    )
    return "full" if any(needs_full) else "projected"


def averages_hessian(recipe: Recipe) -> bool:
    """Return whether statistics are averaged toward the compressed model.

    Only methods whose metric is the curvature of the loss have anything to average.
    """
    averaging = recipe.hessian_averaging
    curved = "gradient_covariance" in DECOMPOSITIONS.get(recipe.method).REQUIRES
    return curved and averaging.weight > 0 and recipe.budget < averaging.below_budget
