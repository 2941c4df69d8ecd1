"""Order in which the experts of a block are removed. One file per criterion.

A module declares `REFERENCE`, `UNIFORM` (whether its source removes the same number of experts
from every block), optionally a frozen dataclass `Options`, and

    order(tokens, options) -> expert numbers, the first to go first

with `tokens` the `RoutedTokens` of the block. At most `tokens.most_removed` of them can go.
Whatever the order, `RoutedTokens.prices` says what it costs.
"""

from spectrim.registry import Registry

EXPERT_ORDERS = Registry("expert order", "spectrim.pruning.experts", "order")

__all__ = ["EXPERT_ORDERS"]
