"""The size of a layer's curvature from a probe for each row: against exact Hessians."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from spectrim import checkpoint
from spectrim.data.tasks import task_loss
from spectrim.errors import InputError
from spectrim.pipeline import tasks
from spectrim.pipeline.prune_for_task import spectral_copy
from spectrim.pipeline.recipe import Recipe, TaskRecipe
from spectrim.pruning import IMPORTANCE, Objective, SpectralLinear, moments
from spectrim.pruning.importance import scaled_fisher
from spectrim.pruning.importance._probing import probe
from tests.pruning.building import coordinate_hessian, removals, rows, spectral_llama
from tests.tolerances import CALIBRATED_CORRELATION, CALIBRATED_RATIO


def _estimate(name: str, model: nn.Module, layers: dict[str, SpectralLinear], objective, **o):
    options = IMPORTANCE.options(name, o)
    return IMPORTANCE.get(name).estimate(model, layers, objective, options)


@pytest.mark.slow
def test_ratios_are_those_of_traces():
    """a_l = tr(D H_l D) / tr(D F_l D) with the exact Hessian, averaged over many signs."""
    model, layers = spectral_llama()
    objective = Objective(rows(), 100)
    _, hessian = coordinate_hessian(model, layers, objective)
    relative = {name: entry.fisher for name, entry in moments(model, layers, objective).items()}
    steps = scaled_fisher._steps(relative, 1e-4)
    seen = [[batch] for batch in Objective(rows(), 1).batches()]
    found = torch.stack(
        [
            scaled_fisher._ratios(
                probe(model, layers, objective, steps, seen, seed), relative, steps
            )[0]
            for seed in range(16)
        ]
    )
    curvature = hessian.diagonal().split([layer.bases for layer in layers.values()])
    expected = torch.stack(
        [
            (h * steps[name].square()).sum() / (relative[name] * steps[name].square()).sum()
            for name, h in zip(layers, curvature, strict=True)
        ]
    )
    noise = found.std(0) / len(found) ** 0.5
    away = (found.mean(0) - expected).abs() / (noise + CALIBRATED_RATIO * expected.abs())
    assert float(away.max()) < 4
    assert float(away.median()) < 1.5


def test_steps_cost_what_was_asked_and_favor_no_basis():
    relative = {
        "a": torch.tensor([1e-2, 1e-4, 0.0]).double(),
        "b": torch.tensor([1.0]).double(),
    }
    steps = scaled_fisher._steps(relative, 1e-3)
    cost = 0.5 * sum(float((relative[n] * steps[n].square()).sum()) for n in relative)
    assert cost == pytest.approx(1e-3)
    assert steps["a"].isfinite().all()
    assert steps["a"][1] / steps["a"][0] == pytest.approx(100 ** (1 / 3))
    assert all(
        torch.equal(step, torch.zeros(2).double())
        for step in scaled_fisher._steps({"a": torch.zeros(2).double()}, 1e-3).values()
    )


def test_a_loss_of_other_units_changes_scores_by_its_units():
    """3 L has 9 times the squared gradients and 3 times the curvature."""
    model, layers = spectral_llama()

    def tripled(given: nn.Module, batch) -> tuple[Tensor, int]:
        summed, count = task_loss(given, batch)
        return 3 * summed, count

    once = _estimate("scaled_fisher", model, layers, Objective(rows(), 6), energy=1e-8)
    thrice = _estimate(
        "scaled_fisher", model, layers, Objective(rows(), 6, tripled), energy=3e-8
    )
    for name in layers:
        torch.testing.assert_close(
            thrice.scores[name], 3 * once.scores[name], rtol=1e-3, atol=0
        )


def test_layers_that_are_uncertain_are_drawn_to_the_others():
    means = torch.tensor([1.0, 2.0, 3.0, 40.0]).double()
    sure = torch.full((4,), 1e-12).double()
    torch.testing.assert_close(scaled_fisher._pooled(means, sure), means)
    doubtful = sure.clone()
    doubtful[3] = 1e8
    pooled = scaled_fisher._pooled(means, doubtful)
    torch.testing.assert_close(pooled[:3], means[:3])
    assert 1 < float(pooled[3]) < 3
    same = scaled_fisher._pooled(torch.ones(3).double() * 2, torch.ones(3).double())
    torch.testing.assert_close(same, torch.ones(3).double() * 2)
    torch.testing.assert_close(scaled_fisher._pooled(means[:1], sure[:1]), means[:1])
    alike, certain = torch.ones(3).double(), torch.zeros(3).double()
    torch.testing.assert_close(scaled_fisher._pooled(alike, certain), alike)


def test_a_loss_without_a_gradient_scores_nothing():
    model, layers = spectral_llama()

    def flat(given: nn.Module, batch) -> tuple[Tensor, int]:
        summed, count = task_loss(given, batch)
        return 0 * summed, count

    found = _estimate("scaled_fisher", model, layers, Objective(rows(), 6, flat))
    assert all(not scores.any() for scores in found.scores.values())


@pytest.mark.slow
def test_removals_of_a_model_that_is_sure_are_ranked():
    """The shipped arithmetic model: squared gradients alone rank its bases badly."""
    model, tokenizer = checkpoint.load("arithmetic", dtype=torch.float32)
    recipe = Recipe(method="svd", task=TaskRecipe(data="arithmetic:train:24"))
    spectral, layers = spectral_copy(model, tokenizer, recipe)
    objective = Objective(tasks.load_task_rows(model, tokenizer, recipe.task), 24)
    names = list(layers)[::7]
    measured = torch.cat(list(removals(spectral, layers, objective, names, 9).values()))
    found = {
        name: torch.cat(
            [
                _estimate(name, spectral, layers, objective, **options).scores[key][::9]
                for key in names
            ]
        )
        for name, options in (("fisher", {}), ("scaled_fisher", {"rows": 24}))
    }
    ours, plain = (_rank_correlation(found[n], measured) for n in ("scaled_fisher", "fisher"))
    assert ours > CALIBRATED_CORRELATION > plain


def _rank_correlation(a: Tensor, b: Tensor) -> float:
    ranks = torch.stack([a.argsort().argsort().double(), b.argsort().argsort().double()])
    return float(torch.corrcoef(ranks)[0, 1])


@pytest.mark.parametrize("options", [{"rows": 1}, {"energy": 0.0}, {"energy": float("nan")}])
def test_wrong_options_are_refused(options):
    with pytest.raises(InputError):
        IMPORTANCE.options("scaled_fisher", options)


def test_half_precision_is_refused():
    model, layers = spectral_llama()
    model.to(torch.bfloat16)
    with pytest.raises(InputError, match="float32"):
        _estimate("scaled_fisher", model, layers, Objective(rows()))


def test_rows_without_a_scored_token_are_passed_over():
    model, layers = spectral_llama()
    given = rows()
    given.scored[0] = False
    found = _estimate("scaled_fisher", model, layers, Objective(given, 6))
    assert found.passes == pytest.approx(1 + 2 * 5 / 6)
