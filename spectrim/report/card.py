"""The facts of a plan as a model card."""

from __future__ import annotations

from spectrim.checkpoint import CardFacts, model_card
from spectrim.checkpoint.license import license_of
from spectrim.pipeline.recipe import Recipe
from spectrim.planning import Plan


def card_for(base: str, plan: Plan, recipe: Recipe) -> str:
    """README.md of a compressed checkpoint of the model named `base`."""
    figures = []
    refined = [f"refined by {step.name}" for step in recipe.refinement]
    steps = [plan.method, f"{plan.allocation} ranks", *_tables(recipe), *refined]
    if plan.predicted_loss is not None:
        predicted = f"+{plan.predicted_loss:.4f}"
        what = "predicted loss increase" + (" before refinement" if refined else "")
        figures.append((f"{what} (nats per token)", "0", predicted))
    return model_card(
        CardFacts(
            base_model=base,
            method=", ".join(steps),
            layer_kind=plan.layer,
            kept=plan.kept,
            data=_data(recipe),
            figures=figures,
            ranks=plan.ranks,
            license=license_of(base),
        )
    )


def _tables(recipe: Recipe) -> list[str]:
    given = recipe.embeddings
    if given is None:
        return []
    return [f"embedding table factored by {given.method} at budget {given.budget:g}"]


def _data(recipe: Recipe) -> str:
    if recipe.task is not None:
        counted = "the answers' tokens" if recipe.task.labels == "answer" else "all tokens"
        return f"the task {recipe.task.data}, its loss counted on {counted}"
    return f"{recipe.calibration.data}, {recipe.calibration.sequences} sequences"
