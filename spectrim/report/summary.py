"""The result of a compression in one line: size, perplexity measured and predicted."""

from __future__ import annotations

from spectrim.models.kind import CLASSIFIER
from spectrim.report.facts import ReportData
from spectrim.report.formatting import ratio, signed_loss, size


def summary(facts: ReportData) -> str:
    """Return a line on the result; what was not measured is only predicted.

    `3.94 MB -> 3.32 MB (-16%); perplexity x1.05 measured (+0.049 nats), x1.047 predicted; KL
    divergence 0.0481; same next token 89.6%`
    """
    dense, stored = (sum(getattr(p, name) for p in facts.parts) for name in ("dense", "stored"))
    parts = [size_change(dense, stored), _loss(facts)]
    if facts.accuracy is not None and facts.of_kind is CLASSIFIER:
        before, after = facts.accuracy
        parts.append(f"accuracy {before:.1%} -> {after:.1%}")
    if facts.result is not None:
        parts.append(f"KL divergence {facts.result:.4f}")
    if facts.agreement is not None:
        parts.append(f"same {facts.of_kind.predicts} {facts.agreement:.1%}")
    return "; ".join(filter(None, parts))


def outcome(facts: ReportData) -> dict[str, float | None]:
    """Return the figures of the line by name; None for what was not measured."""
    dense, stored = (sum(getattr(p, name) for p in facts.parts) for name in ("dense", "stored"))
    return {
        "bytes_before": dense or None,
        "bytes": stored or None,
        "predicted_loss": facts.predicted_loss,
        "measured_loss_increase": facts.loss_increase,
        "measured_divergence": facts.result,
        "same_next_token": facts.agreement if facts.of_kind.of_tokens else None,
        **({} if facts.accuracy is None else {"accuracy": facts.accuracy[1]}),
    }


def size_change(before: float, after: float) -> str:
    """Return `3.94 MB -> 3.32 MB (-16%)`; "" for unknown sizes."""
    if not before:
        return ""
    return f"{size(before)} -> {size(after)} ({after / before - 1:+.0%})"


def _loss(facts: ReportData) -> str:
    """Return the change of the perplexity, or of a loss per example."""
    if facts.of_kind.of_tokens:
        return _perplexity(facts)
    words = []
    if facts.loss_increase is not None:
        words.append(f"{signed_loss(facts.loss_increase)} measured")
    if facts.predicted_loss is not None:
        words.append(f"{signed_loss(facts.predicted_loss)} predicted")
    return f"loss per {facts.of_kind.unit} {', '.join(words)}" if words else ""


def _perplexity(facts: ReportData) -> str:
    words = []
    if facts.loss_increase is not None:
        measured = signed_loss(facts.loss_increase)
        words.append(f"{ratio(facts.loss_increase)} measured ({measured} nats)")
    if facts.predicted_loss is not None:
        when = " before refinement" if facts.refined else ""
        words.append(f"{ratio(facts.predicted_loss)} predicted{when}")
    return f"perplexity {', '.join(words)}" if words else ""
