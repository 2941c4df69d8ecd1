"""Layer by layer, the original layer's output on the inputs that the rewritten prefix gives.

    min_{rank r}  E || L_out^T (W - W_hat) x' ||^2,    L_out L_out^T = C_g or I

SVD-LLM's sequential update: every layer is decomposed again, at the rank it has, with the
covariance of the inputs x' that it will really see, W the original's weight.

Memory: the compressed model and the original's weights, one array of hidden states, tokens x
width x 4 bytes, and in x in x 8 bytes for each tensor that a stage of layers reads. Work: two
to three forward passes, and a Cholesky factor and an eigenproblem per layer.
"""

from __future__ import annotations

from transformers import PreTrainedModel

from spectrim.data import TokenBlocks
from spectrim.refinement._sequential import task as task_module
from spectrim.refinement._sequential.run import rewrite
from spectrim.refinement._sequential.task import SequentialInputs, SequentialOptions
from spectrim.training.progress import RunContext

REFERENCE = "Wang et al., 2024, arXiv:2403.07378; L_out: Li et al., 2026, arXiv:2604.00821"
REQUIRES = task_module.REQUIRES
requires = task_module.requires
Options = SequentialOptions


def refine(
    original: PreTrainedModel,
    compressed: PreTrainedModel,
    blocks: TokenBlocks,
    options: Options,
    progress: RunContext,
) -> PreTrainedModel:
    """Rewrites `compressed` in place. Raises InputError without the statistics it needs."""
    task = SequentialInputs("svd_llm_update", original, compressed, blocks, options, progress)
    return rewrite(task, lambda walker: None)
