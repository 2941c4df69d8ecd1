"""Check by a few tokens that a model predicts each token from those before it alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spectrim.errors import ModelError

_LENGTH = 12
_LEAK = {torch.float32: 1e-4, torch.float64: 1e-4}
"""Change of earlier logits, relative to that of the last ones, that is not rounding."""
_HALF_LEAK = 0.05


@torch.no_grad()
def check_causal(model: nn.Module, ids: Tensor) -> None:
    """Raise ModelError when another last token changes the logits of the tokens before it.

    Args:
        model: a language model, in evaluation mode.
        ids: (1, length) token ids that the model can read.
    """
    ids = ids[:, :_LENGTH]
    other = ids.clone()
    other[:, -1] = ids[:, 0]
    change = (_logits(model, ids) - _logits(model, other)).abs()
    earlier, last = float(change[:, :-1].max()), float(change[:, -1].max())
    allowed = _LEAK.get(next(model.parameters()).dtype, _HALF_LEAK)
    if earlier > allowed * max(last, 1e-6):
        raise ModelError(
            f"{type(model).__name__} is not causal: predictions change with the tokens after "
            "them, so there is no next-token loss; compress it for a loss of its own with "
            "spectrim.compress_any(model, batches, loss)"
        )


def _logits(model: Any, ids: Tensor) -> Tensor:
    return model(input_ids=ids, use_cache=False).logits.float()
