"""Train everything in the blocks on the next-token loss, of a text or a task's answers.

    min  1/n sum_t -log p(x_t | x_<t),     t over the scored tokens (all of a text)

over the factors, norms, biases and what stayed dense in the decoder blocks. Embeddings and head
are fixed. The original model is not used.

Memory: the model, AdamW's two moments and a gradient for each trained parameter, the
activations of one step, and two arrays of its tokens x vocabulary x 4 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from spectrim.runtime.context import RunContext
from spectrim.training.balanced_factors import balanced_parameters
from spectrim.training.forward import Precision
from spectrim.training.inputs import Losses, TrainingInputs
from spectrim.training.loop import Stage
from spectrim.training.losses import next_token_loss, task_rows
from spectrim.training.run import TrainingRun
from spectrim.training.schedule import EpochOptions

REFERENCE = "the fine-tuning of Basel, arXiv:2405.15877; of AA-SVD's third level"
QUICK = {"steps": 16, "batch_size": 4}


@dataclass(frozen=True)
class Options(EpochOptions):
    """steps of `batch_size` rows each; None: `epochs` over the rows. `warmup_ratio` is a share
    of the steps; gradients are clipped to the norm `max_grad_norm`; precision is that of the
    matrix products ("float32" or "bfloat16")."""

    precision: Precision = "float32"


def refine(inputs: TrainingInputs, options: Options, context: RunContext) -> Losses:
    """Train `inputs.compressed`. Raises NumericalError naming a step that is not finite."""
    key = inputs.key("finetune", options)
    rows = task_rows(inputs.blocks)
    loss = partial(next_token_loss, inputs.compressed, rows, options.precision)
    with balanced_parameters(inputs.compressed) as parameters:
        stage = Stage("next token", parameters, loss, len(rows))
        run = TrainingRun(parameters, key, context)
        return run.complete([stage], options.schedule(len(rows)))
