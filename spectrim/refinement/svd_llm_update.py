"""Layer by layer, the original layer's output on the inputs that the rewritten prefix gives.

    min_{rank r}  E || L_out^T (W - W_hat) x' ||^2,    L_out L_out^T = C_g or I

SVD-LLM's sequential update: every layer is decomposed again, at the rank it has, with the
covariance of the inputs x' that it will really see, W the original's weight.

Memory: the compressed model and the original's weights, one array of hidden states, tokens x
width x 4 bytes, and in x in x 8 bytes for each tensor that a stage of layers reads. Work: two
to three forward passes, and a Cholesky factor and an eigenproblem per layer.
"""

from __future__ import annotations

from spectrim.refinement._sequential import inputs as sequential
from spectrim.refinement._sequential.inputs import SequentialInputs, SequentialOptions
from spectrim.refinement._sequential.run import rewrite
from spectrim.runtime.context import RunContext
from spectrim.training.inputs import Losses, TrainingInputs

REFERENCE = "Wang et al., 2024, arXiv:2403.07378; L_out: Li et al., 2026, arXiv:2604.00821"
NEEDS_LOSSLESS = True
REQUIRES = sequential.REQUIRES
requires = sequential.requires
Options = SequentialOptions


def refine(inputs: TrainingInputs, options: Options, context: RunContext) -> Losses:
    """Rewrite `inputs.compressed`. Raises InputError without the statistics it needs."""
    task = SequentialInputs("svd_llm_update", inputs, options, context)
    return rewrite(task, lambda walker: None)
