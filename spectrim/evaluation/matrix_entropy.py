"""Matrix entropy of the last hidden states: the logarithm of their effective rank.

    H = -sum_i p_i log p_i,   p the eigenvalues of Z^T Z over their sum, nats

Z (L, d): a row's tokens, centered and scaled to length one; the mean over rows.
"""

from __future__ import annotations

from transformers import PreTrainedModel

from spectrim.data import TokenBlocks
from spectrim.evaluation._forward import BatchOptions
from spectrim.evaluation._hidden import mean_over_rows
from spectrim.linalg import spectrum

NEEDS_ORIGINAL = False
COMMAND = "spectrim inspect MODEL OUT --data TEXT"
REFERENCE = "Wei et al., 2024, arXiv:2401.17139"
Options = BatchOptions


def evaluate(
    model: PreTrainedModel,
    blocks: TokenBlocks,
    options: BatchOptions,
    reference: PreTrainedModel | None = None,
) -> dict[str, float]:
    """Return `matrix_entropy`.

    Raises InputError for rows of single tokens, NumericalError for states that are not finite.
    """
    found = mean_over_rows(model, blocks, options.batch_size, spectrum.matrix_entropy)
    return {"matrix_entropy": found}
