"""Train factors so that every prefix of their terms is a model: one layer cut at every step.

    min  E_{i, b}[ -log p(x_t | x_<t),  layer i with its first b terms ]
         + penalty sum_i sum_b ( ||left_i[:, b:]|| + ||right_i[b:]|| )

over factors, norms, biases and what stayed dense in the blocks. Ranks stay; terms become
ordered by what they are worth to the loss, so that plain factors (`lowrank`) can later be cut
at any rank without being decomposed again. Other kinds store the product, not the order.

Memory: that of `finetune`: the model, AdamW's two moments and a gradient for each trained
parameter, the activations of one step, and its tokens x vocabulary x 4 bytes twice.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from spectrim.errors import InputError
from spectrim.layers.lowrank import LowRankLinear
from spectrim.models.replace import factored_layers
from spectrim.refinement import finetune
from spectrim.runtime.context import RunContext
from spectrim.training.balanced_factors import balanced_parameters
from spectrim.training.inputs import Losses, TrainingInputs
from spectrim.training.loop import Stage
from spectrim.training.losses import next_token_loss, task_rows
from spectrim.training.ordered_dropout import OrderedDropout
from spectrim.training.run import TrainingRun

REFERENCE = "Horvath et al., 2024, arXiv:2308.14929"
QUICK = {"steps": 32, "batch_size": 8, "learning_rate": 2e-3}
NEEDS_LOSSLESS = True
_NAME = "nested prefixes"


@dataclass(frozen=True)
class Options(finetune.Options):
    """penalty: the weight of the tails' norms in the loss; the rest as of `finetune`."""

    penalty: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.penalty < 0:
            raise InputError(f"penalty cannot be negative, got {self.penalty}")


def refine(inputs: TrainingInputs, options: Options, context: RunContext) -> Losses:
    """Train `inputs.compressed`. Raises NumericalError naming a step that is not finite."""
    key, model = inputs.key("maestro", options), inputs.compressed
    rows = task_rows(inputs.blocks)
    with balanced_parameters(model) as parameters:
        layers = {n: m for n, m in factored_layers(model) if isinstance(m, LowRankLinear)}
        dropout = OrderedDropout(layers, options.seed)
        run = TrainingRun(parameters, key, context)

        def loss(chosen: Tensor) -> Tensor:
            with dropout.cut(len(run.state.losses[_NAME])):
                cut = next_token_loss(model, rows, options.precision, chosen)
                return cut + options.penalty * dropout.penalty()

        stage = Stage(_NAME, parameters, loss, len(rows))
        return run.complete([stage], options.schedule(len(rows)))
