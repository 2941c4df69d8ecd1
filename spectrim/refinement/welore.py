"""Train the factors of the low-rank layers alone on the next-token loss; what is dense stays.

    min_{left_i, right_i}  1/n sum_t -log p(x_t | x_<t),     i over the factored layers

WeLore's selective tuning: layers that can be cut far are those that still learn, layers that
stay dense have little to gain. Gradients and optimizer state are those of the factors alone,
and frozen layers keep no activations for gradients of their own. `part` = "dense" trains the
others in their place, "all" both: what the claim is to be compared with.

Memory: the compressed model, a copy of what is in its blocks, AdamW's two moments and a
gradient for each trained parameter, the activations of one step, and its tokens x vocabulary
x 4 bytes twice. The original is not run.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import nn

from spectrim.errors import ModelError
from spectrim.models.replace import factored_layers
from spectrim.refinement import finetune
from spectrim.runtime.context import RunContext
from spectrim.training.balanced_factors import Parameters, balanced_parameters
from spectrim.training.inputs import Losses, TrainingInputs
from spectrim.training.loop import Stage
from spectrim.training.losses import next_token_loss, task_rows
from spectrim.training.run import TrainingRun

REFERENCE = "Jaiswal et al., 2024, arXiv:2407.11239"
QUICK = {"steps": 16, "batch_size": 4}
Part = Literal["low_rank", "dense", "all"]


@dataclass(frozen=True)
class Options(finetune.Options):
    """part: the factored layers, the other weight matrices of the blocks, or both; the rest as
    of `finetune`."""

    part: Part = "low_rank"


def refine(inputs: TrainingInputs, options: Options, context: RunContext) -> Losses:
    """Train `inputs.compressed`. Raises NumericalError naming a step that is not finite."""
    key = inputs.key("welore", options)
    rows = task_rows(inputs.blocks)
    loss = partial(next_token_loss, inputs.compressed, rows, options.precision)
    with balanced_parameters(inputs.compressed) as inside:
        parameters = chosen(inputs.compressed, inside, options.part)
        for name, parameter in inside.items():
            parameter.requires_grad_(name in parameters)
        stage = Stage("next token", parameters, loss, len(rows))
        run = TrainingRun(parameters, key, context)
        return run.complete([stage], options.schedule(len(rows)))


def chosen(model: nn.Module, inside: Parameters, part: Part) -> Parameters:
    """Return the matrices of a part among the parameters `inside`. Raises ModelError."""
    layers = tuple(name + "." for name, _ in factored_layers(model))
    found = {
        name: parameter
        for name, parameter in inside.items()
        if parameter.ndim > 1 and part in ("all", _part(name, layers))
    }
    if not found:
        raise ModelError(
            f"no layer of the blocks is {'dense' if part == 'dense' else 'factored'}; choose "
            "another part, or compress the model at a budget that leaves some"
        )
    return found


def _part(name: str, layers: tuple[str, ...]) -> Part:
    return "low_rank" if name.startswith(layers) else "dense"
