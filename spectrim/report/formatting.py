"""The formats of numbers on a page."""

from __future__ import annotations

_UNITS = ("B", "kB", "MB", "GB", "TB")


def size(count: float) -> str:
    """Format bytes with three digits: 1.23 MB."""
    step = 0
    while count >= 999.5 and step < len(_UNITS) - 1:
        count, step = count / 1000, step + 1
    digits = 0 if step == 0 or count >= 99.95 else 1 if count >= 9.995 else 2
    return f"{count:.{digits}f} {_UNITS[step]}"


def loss(value: float) -> str:
    """Format nats per token with two or three digits."""
    if value >= 9.995:
        return f"{value:.1f}"
    if value >= 0.0995:
        return f"{value:.2f}"
    return f"{value:.2g}" if value > 0 else "0"


def tick(power: int) -> str:
    """Format 10^power for an axis."""
    return f"{10.0**power:g}" if -4 <= power <= 4 else f"1e{power}"


def percent(share: float) -> str:
    """Format whole percents without decimals, others with one."""
    return f"{100 * share:.1f}".removesuffix(".0") + "%"
