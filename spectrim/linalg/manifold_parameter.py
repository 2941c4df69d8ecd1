"""Parameters that an optimizer recognizes by their class as points of a manifold."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class GrassmannParameter(nn.Parameter):
    """Orthonormal bases (..., d, k) of subspaces; the loss must depend on their spans alone.

    A class, not an attribute of a tensor, so that copying and pickling keep it.
    """

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _rebuild, (self.data, self.requires_grad)


def _rebuild(data: Tensor, requires_grad: bool) -> GrassmannParameter:
    return GrassmannParameter(data, requires_grad)
