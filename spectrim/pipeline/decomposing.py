"""From statistics to factors with their predicted curves."""

from __future__ import annotations

import torch
import transformers
from transformers import PreTrainedModel

import spectrim
from spectrim.calibration import Calibration
from spectrim.curves.predicted import NEEDED, predicted_curve
from spectrim.decompositions import DECOMPOSITIONS, LayerProblem, decompose_layer
from spectrim.pipeline.progress import Track, silent
from spectrim.planning import Decomposition
from spectrim.recipe import Recipe
from spectrim.surgery.adapters import bias_of, weight_of


def decompose(
    model: PreTrainedModel,
    calibration: Calibration,
    recipe: Recipe | None = None,
    track: Track = silent,
) -> Decomposition:
    """Factors of every calibrated layer with their predicted loss curves.

    A layer that no token reached (an expert, say) keeps its plain SVD and a curve of zeros,
    with a warning. Raises NumericalError for weights or statistics that cannot be factorised.
    """
    recipe = recipe or Recipe()
    options = DECOMPOSITIONS.options(recipe.method, recipe.method_options)
    names = list(calibration.groups)
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
    return result


def versions() -> dict[str, str]:
    return {
        "spectrim": spectrim.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
