"""`W = U diag(s) V^T` of full rank, of which s and some columns of U and V train at a time.

Gradients and optimizer state are those of `vectors` columns per side, drawn anew every
`interval` steps; in time all columns have their turn, so that W is not confined to a low rank.
U and V together are larger than W: what is saved is optimizer state, not weights. In the end
the layers are dense again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spectrim.models.replace import replace_layer
from spectrim.training.pretraining._job import Job, dense_layer
from spectrim.training.spectral_linear import SpectralLinear
from spectrim.training.spectral_training import SpectralOptions, train_spectral

REFERENCE = "Zhao et al., 2025, arXiv:2405.15481"


@dataclass(frozen=True)
class Options(SpectralOptions):
    """vectors: trained at a time in each layer; interval: steps between choices."""


def train(job: Job, options: Options) -> dict[str, dict[str, Any]]:
    """Train singular values and vectors. Raises NumericalError naming a bad step."""
    layers: dict[str, SpectralLinear] = {}
    for name, layer in list(job.layers()):
        rank = min(layer.weight.shape)
        layers[name] = SpectralLinear(layer.weight, layer.bias, rank, options.vectors)
        job.model.set_submodule(name, layers[name])
    run = job.start()
    if not run.finished:
        run.resume()
        train_spectral(run, layers, job.stage(inside=layers), job.schedule, options)
    run.finish()
    job.finish(run)
    for name, spectral in layers.items():
        replace_layer(job.model, name, dense_layer(spectral.weight(), spectral.bias))
    for parameter in job.model.parameters():
        parameter.requires_grad_(True)
    return {}
