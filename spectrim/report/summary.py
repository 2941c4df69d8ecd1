"""The result of a compression in one line: size, measured divergence, prediction."""

from __future__ import annotations

from spectrim.report.facts import ReportData


def summary(facts: ReportData) -> str:
    """Return a line like `3.94 MB -> 3.32 MB (-16%); KL 0.0493 nats measured, ...`."""
    dense = sum(part.dense for part in facts.parts)
    stored = sum(part.stored for part in facts.parts)
    parts = [f"{dense / 1e6:,.2f} MB -> {stored / 1e6:,.2f} MB ({stored / dense - 1:+.0%})"]
    losses = []
    if facts.result is not None:
        losses.append(f"KL divergence {facts.result:.4f} nats per token measured")
    if facts.predicted_loss is not None:
        losses.append(f"{facts.predicted_loss:+.4f} predicted")
    if losses:
        parts.append(", ".join(losses))
    if facts.agreement is not None:
        parts.append(f"same next token {facts.agreement:.1%}")
    return "; ".join(parts)
