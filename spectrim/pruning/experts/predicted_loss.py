"""The expert whose removal adds least to the predicted loss, again and again.

    next = argmin_e price(removed + {e}),   price = 1/2 E[(sum_e (w'_e - w_e) g . f_e(x))^2]

with w' the weights of a router without the removed experts: tokens go to their next choice, and
two experts that stand in for each other are not both cheap. Nats per token, as for ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

from spectrim.calibration.routed_tokens import RoutedTokens

REFERENCE = "second-order pruning, LeCun et al., 1989, of whole experts; greedy"
UNIFORM = False


@dataclass(frozen=True)
class Options:
    """candidates: experts that are priced for each removal, those cheapest before."""

    candidates: int = 16


def order(tokens: RoutedTokens, options: Options) -> list[int]:
    removed: list[int] = []
    prices = {e: tokens.price([e]) for e in range(tokens.routing.count)}
    while len(removed) < tokens.most_removed:
        cheapest = sorted(prices, key=prices.__getitem__)[: options.candidates]
        if removed:
            prices |= {e: tokens.price([*removed, e]) for e in cheapest}
        chosen = min(cheapest, key=prices.__getitem__)
        removed.append(chosen)
        del prices[chosen]
    return removed
