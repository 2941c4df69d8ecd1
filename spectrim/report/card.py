"""The facts of a plan as a model card."""

from __future__ import annotations

from spectrim.hub import CardFacts, model_card
from spectrim.planning import Plan
from spectrim.recipe import Recipe


def card_for(base: str, plan: Plan, recipe: Recipe) -> str:
    """README.md of a compressed checkpoint of the model named `base`."""
    figures = []
    refined = [f"refined by {step.name}" for step in recipe.refinement]
    if plan.predicted_loss is not None:
        predicted = f"+{plan.predicted_loss:.4f}"
        what = "predicted loss increase" + (" before refinement" if refined else "")
        figures.append((f"{what} (nats per token)", "0", predicted))
    given = recipe.calibration
    return model_card(
        CardFacts(
            base_model=base,
            method=", ".join([plan.method, f"{plan.allocation} ranks", *refined]),
            layer_kind=plan.layer,
            kept=plan.kept,
            data=f"{given.data}, {given.sequences} sequences",
            figures=figures,
            ranks=plan.ranks,
        )
    )
