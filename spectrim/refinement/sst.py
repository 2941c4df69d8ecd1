"""Train `W_hat = U diag(s) V^T`: all of s, and some columns of U and V at a time.

    min_{s, u_i, v_i; i in Q}  1/n sum_t -log p(x_t | x_<t),      Q drawn every `interval` steps

Sparse spectral training of the factored layers, with the norms and biases of the blocks: the
optimizer's state is that of `vectors` columns per layer, and in time all have their turn. What
is dense in the blocks stays.

Memory: the model, a copy of what is in its blocks, AdamW's two moments and a gradient for the
chosen columns, the activations of one step, one dense weight and its gradient, and the step's
tokens x vocabulary x 4 bytes twice. The original is not run.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import nn

from spectrim.errors import ModelError
from spectrim.layers.lowrank import LowRankLinear
from spectrim.models.replace import factored_layers, replace_layer
from spectrim.refinement import finetune
from spectrim.runtime.context import RunContext
from spectrim.training.balanced_factors import Parameters, balanced_parameters
from spectrim.training.inputs import Losses, TrainingInputs
from spectrim.training.loop import Stage
from spectrim.training.losses import next_token_loss, task_rows
from spectrim.training.run import TrainingRun
from spectrim.training.spectral_linear import SpectralLinear
from spectrim.training.spectral_training import (
    SpectralOptions,
    train_spectral,
    trained_parameters,
)

REFERENCE = "Zhao et al., 2025, arXiv:2405.15481"
QUICK = {"steps": 16, "batch_size": 4, "interval": 5, "vectors": 2}
NEEDS_LOSSLESS = True


@dataclass(frozen=True)
class Options(finetune.Options):
    """vectors: trained at a time in each layer; interval: steps between choices; the rest as
    of `finetune`."""

    vectors: int = 16
    interval: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        self.spectral  # noqa: B018  # says what is wrong with them

    @property
    def spectral(self) -> SpectralOptions:
        return SpectralOptions(self.vectors, self.interval)


def refine(inputs: TrainingInputs, options: Options, context: RunContext) -> Losses:
    """Train `inputs.compressed`. Raises NumericalError naming a step that is not finite."""
    key, model = inputs.key("sst", options), inputs.compressed
    rows = task_rows(inputs.blocks)
    loss = partial(next_token_loss, model, rows, options.precision)
    with balanced_parameters(model) as inside:
        layers = _exchange(model, options.vectors)
        small = {
            n: p for n, p in inside.items() if p.ndim < 2 and not n.startswith(_all(layers))
        }
        run = TrainingRun(small | _every(layers), key, context)
        stage = Stage("spectral", small | trained_parameters(layers), loss, len(rows))
        if not run.finished:
            run.resume()
            schedule = options.schedule(len(rows))
            train_spectral(run, layers, stage, schedule, options.spectral)
        losses = run.finish()
        for name, layer in layers.items():
            left, right = layer.vectors()[0] * layer.s.detach(), layer.vectors()[1].T
            replace_layer(model, name, LowRankLinear.from_factors(left, right, layer.bias))
    return losses


def _exchange(model: nn.Module, vectors: int) -> dict[str, SpectralLinear]:
    """Put spectral layers in place of plain factors. Raises ModelError if there are none."""
    found: dict[str, SpectralLinear] = {}
    for name, layer in list(factored_layers(model)):
        if isinstance(layer, LowRankLinear):
            weight = layer.left.weight.detach() @ layer.right.weight.detach()
            found[name] = SpectralLinear(weight, layer.left.bias, layer.rank, vectors)
            model.set_submodule(name, found[name])
    if not found:
        raise ModelError(f"{type(model).__name__} has no factored layer; compress it first")
    return found


def _all(layers: dict[str, SpectralLinear]) -> tuple[str, ...]:
    return tuple(name + "." for name in layers)


def _every(layers: dict[str, SpectralLinear]) -> Parameters:
    """Return all tensors of the layers, trained or not, for snapshots."""
    return {
        f"{n}.{own}": p for n, layer in layers.items() for own, p in layer.named_parameters()
    }
