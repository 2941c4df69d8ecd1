"""From statistics to factors with their predicted curves."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
import transformers
from transformers import PreTrainedModel

import spectrim
from spectrim.calibration import Calibration
from spectrim.curves.predicted import NEEDED, predicted_curve, signed_effects
from spectrim.decompositions import DECOMPOSITIONS, LayerProblem, decompose_layer
from spectrim.errors import NumericalError, NumericalWarning
from spectrim.pipeline.progress import Track, silent
from spectrim.planning import Decomposition
from spectrim.recipe import Recipe
from spectrim.surgery.adapters import bias_of, weight_of

_SHOWN = 5


def decompose(
    model: PreTrainedModel,
    calibration: Calibration,
    recipe: Recipe | None = None,
    track: Track = silent,
) -> Decomposition:
    """Factors of every calibrated layer with their predicted loss curves.

    A layer that no loss came through (an expert that no token reached, say) gets no factors:
    it stays dense and outside the budget, with a NumericalWarning that names it. Raises
    NumericalError for weights or statistics that cannot be factorised.
    """
    recipe = recipe or Recipe()
    options = DECOMPOSITIONS.options(recipe.method, recipe.method_options)
    names = [name for name in calibration.groups if _has_signal(calibration, name)]
    _warn_of_others([name for name in calibration.groups if name not in names], len(names))
    result = Decomposition(
        recipe.method,
        shapes={},
        factors={},
        curves={},
        units="nats per token" if set(NEEDED) <= set(calibration.states) else "own",
        provenance={**calibration.provenance, "versions": versions()},
    )
    for name in track(names, "decomposing", len(names)):
        layer = model.get_submodule(name)
        statistics = calibration.layer(name)
        problem = LayerProblem(name, weight_of(layer).detach(), bias_of(layer), statistics)
        factors = decompose_layer(recipe.method, problem, options)
        result.shapes[name] = (factors.left.shape[0], factors.right.shape[1])
        result.factors[name] = factors
        result.curves[name] = predicted_curve(factors, statistics)
        if "mean_gradient" in statistics:
            result.signed[name] = signed_effects(factors, statistics)
    return result


def _has_signal(calibration: Calibration, name: str) -> bool:
    """Tokens reached the layer, and where gradients were summed, one of them is not zero."""
    gradients = calibration.states.get("gradient_covariance")
    reached = calibration.counts[name] > 0
    return reached and (gradients is None or bool(gradients[name]["sum"].any()))


def _warn_of_others(names: Sequence[str], rest: int) -> None:
    if not rest:
        raise NumericalError(
            "no loss came through any of the layers; check the model's weights, "
            "or calibrate on more data"
        )
    if names:
        shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
        warnings.warn(
            f"no loss came through {len(names)} of {len(names) + rest} calibrated layers "
            f"({shown}): they stay dense and outside the budget; calibrate on more data",
            NumericalWarning,
            stacklevel=3,
        )


def versions() -> dict[str, str]:
    return {
        "spectrim": spectrim.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
