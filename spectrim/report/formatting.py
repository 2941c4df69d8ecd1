"""The formats of numbers on a page."""

from __future__ import annotations

import math

UNITS = ("B", "kB", "MB", "GB", "TB")


def size(count: float) -> str:
    """Format bytes with three digits: 1.23 MB."""
    step = 0
    while count >= 999.5 and step < len(UNITS) - 1:
        count, step = count / 1000, step + 1
    digits = 0 if step == 0 or count >= 99.95 else 1 if count >= 9.995 else 2
    return f"{count:.{digits}f} {UNITS[step]}"


def loss(value: float) -> str:
    """Format nats per token with two or three digits."""
    if value >= 9.995:
        return f"{value:.1f}"
    if value >= 0.0995:
        return f"{value:.2f}"
    return f"{value:.2g}" if value > 0 else "0"


def signed_loss(value: float) -> str:
    """Format a measured difference of losses, which may be negative."""
    return f"{'-' if value < 0 else '+'}{loss(abs(value))}"


def ratio(nats: float) -> str:
    """Format the ratio of perplexities of a loss increase: x1.05."""
    times = math.exp(min(nats, 20.0))
    return (
        f"x{times:.3f}" if times < 1.1 else f"x{times:.2f}" if times < 100 else f"x{times:.0f}"
    )


def tick(power: int) -> str:
    """Format 10^power for an axis."""
    return f"{10.0**power:g}" if -4 <= power <= 4 else f"1e{power}"


def percent(share: float) -> str:
    """Format whole percents without decimals, others with one."""
    return f"{100 * share:.1f}".removesuffix(".0") + "%"
