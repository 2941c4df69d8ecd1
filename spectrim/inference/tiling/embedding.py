"""Rows of an embedding table, looked up when a tile of them is needed."""

from __future__ import annotations

import torch
from torch import Tensor

from spectrim.inference.tiling.nodes import Node, Values
from spectrim.inference.tiling.tile import Roles, Tile

ROLES: Roles = ("batch", "token")


class Ids(Node):
    """Token ids (B, T): available at once, a node so that the lookup can be deferred."""

    def __init__(self, ids: Tensor):
        meta = torch.empty(ids.shape, dtype=ids.dtype, device="meta")
        super().__init__(meta, ROLES, ids.device, [])
        self.ids = ids

    def make(self, values: Values, tile: Tile) -> Tensor:
        return values.of(self.ids, tile, self.roles)

    def whole(self) -> Tensor:
        return self.ids

    def forget(self) -> None:
        """Do nothing: the ids are not computed from anything."""
