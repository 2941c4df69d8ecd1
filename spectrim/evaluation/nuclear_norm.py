"""Matrix Nuclear-Norm of the last hidden states: the number of directions of a row's tokens.

    MNN = sum of the D largest column norms of Z / L,   D = min(L, d)

Z (L, d): the row's tokens, centered and scaled to length one; the mean over rows. Linear in the
numbers of Z, while `matrix_entropy` computes eigenvalues; more is richer.
"""

from __future__ import annotations

from transformers import PreTrainedModel

from spectrim.data import TokenBlocks
from spectrim.evaluation._forward import BatchOptions
from spectrim.evaluation._hidden import mean_over_rows
from spectrim.linalg.spectrum import matrix_nuclear_norm

NEEDS_ORIGINAL = False
COMMAND = "spectrim inspect MODEL OUT --data TEXT"
REFERENCE = "Li et al., 2024, arXiv:2410.10672"
Options = BatchOptions


def evaluate(
    model: PreTrainedModel,
    blocks: TokenBlocks,
    options: BatchOptions,
    reference: PreTrainedModel | None = None,
) -> dict[str, float]:
    """Return `matrix_nuclear_norm`.

    Raises InputError for rows of single tokens, NumericalError for states that are not finite.
    """
    found = mean_over_rows(model, blocks, options.batch_size, matrix_nuclear_norm)
    return {"matrix_nuclear_norm": found}
