"""The interleaved run: it meets the budget, logs what it did, and goes on where it stopped."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from spectrim.errors import InputError, NumericalError
from spectrim.layers import layer_class
from spectrim.pruning import LayerCost, Objective, Problem, PruningOptions, run_pruning
from spectrim.runtime import snapshots
from spectrim.runtime.cache import Cache
from spectrim.runtime.context import RunContext
from tests.pruning.building import Quadratic, rows, spectral
from tests.tiny_models import TINY_MODELS
from tests.tolerances import QUADRATIC_RELATIVE

OPTIONS = PruningOptions(
    steps=12, prune_steps=3, batch_size=4, scoring_examples=4, learning_rate=1e-2, extra_rank=1
)


def _problem(budget: float = 0.3, kind: str = "lowrank") -> Problem:
    model = TINY_MODELS["llama"]().eval()
    layers = spectral(model)
    costs = {
        name: LayerCost(
            partial(layer_class(kind).cost, *layer.shape), layer.shape[0] * layer.shape[1], 1
        )
        for name, layer in layers.items()
    }
    return Problem(model, layers, Objective(rows(12), 4), Objective(rows(4), 4), costs, budget)


def _state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("importance", ["kronecker", "magnitude", "hutchinson"])
@pytest.mark.parametrize("kind", ["lowrank", "pivoted"])
def test_a_run_meets_the_budget_and_lowers_the_loss(importance, kind):
    problem = _problem(0.4, kind)
    problem = replace(problem, scoring=problem.training)
    more = {"probes": 1} if importance == "hutchinson" else {}
    options = PruningOptions(
        **{**vars(OPTIONS), "importance": importance, "importance_options": more, "steps": 40}
    )
    state = run_pruning(problem, options, {}, RunContext())
    assert problem.kept() <= 0.4
    assert len(state.losses) == 40
    assert len(state.prune_steps) == 3
    last = state.prune_steps[-1]
    assert problem.scoring.value(problem.model) < last.loss
    kept = [event.kept_after for event in state.prune_steps]
    assert kept == sorted(kept, reverse=True)
    for name, layer in problem.layers.items():
        assert len(state.chosen[name]) == layer.bases
        assert layer.rank == layer.bases + 1


def test_events_tell_what_was_removed_and_what_it_did():
    problem = _problem()
    before = {name: layer.bases for name, layer in problem.layers.items()}
    start = problem.scoring.value(problem.model)
    options = PruningOptions(**{**vars(OPTIONS), "steps": 0, "prune_steps": 1})
    (event,) = run_pruning(problem, options, {}, RunContext()).prune_steps
    assert event.loss == problem.scoring.value(problem.model)
    assert event.measured == pytest.approx(event.loss - start)
    removed = {n: before[n] - layer.bases for n, layer in problem.layers.items()}
    assert event.removed == {name: count for name, count in removed.items() if count}
    assert event.bases == sum(layer.bases for layer in problem.layers.values())
    assert event.predicted is not None
    assert event.passes == 1


class Stop:
    """Passes on `left` items in all, then interrupts."""

    def __init__(self, left: int):
        self.left = left

    def __call__(self, items, what, total):
        for item in items:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            yield item


@pytest.mark.parametrize("tuned", ["singular_values", "factors"])
@pytest.mark.parametrize("steps", [0, 1, 3, 5, 10])
def test_a_stopped_run_ends_the_same(tmp_path, steps, tuned, monkeypatch):
    monkeypatch.setattr(snapshots, "SECONDS_BETWEEN_SAVES", 0.0)
    key = {"test": steps}
    options = replace(OPTIONS, trainable=tuned)
    whole = _problem()
    expected = run_pruning(whole, options, key, RunContext())
    place = Cache(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_pruning(_problem(), options, key, RunContext(place, Stop(steps)))
    resumed = _problem()
    state = run_pruning(resumed, options, key, RunContext(place))
    ours, theirs = _state(resumed.model), _state(whole.model)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert state.losses == expected.losses
    assert [e.kept_after for e in state.prune_steps] == [
        e.kept_after for e in expected.prune_steps
    ]


def test_bases_are_tuned_where_the_options_say_so():
    steps = {"steps": 20, "learning_rate": 1e-12, "extra_rank": 0}
    losses = {}
    for tuned in ("singular_values", "factors"):
        problem = _problem()
        options = replace(OPTIONS, **steps, trainable=tuned, factor_lr=1e-2)
        run_pruning(problem, options, {}, RunContext())
        losses[tuned] = problem.training.value(problem.model)
        moved = {isinstance(layer.left, nn.Parameter) for layer in problem.layers.values()}
        assert moved == {tuned == "factors"}
    assert losses["factors"] < losses["singular_values"]


def test_a_finished_run_is_not_made_again(tmp_path):
    first = _problem()
    run_pruning(first, OPTIONS, {}, RunContext(Cache(tmp_path)))
    again = _problem()
    run_pruning(again, OPTIONS, {}, RunContext(Cache(tmp_path), Stop(0)))
    ours, theirs = _state(again.model), _state(first.model)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_state_of_another_run_is_left_alone(tmp_path):
    run_pruning(_problem(), OPTIONS, {}, RunContext(Cache(tmp_path)))
    (entry,) = tmp_path.glob("selection-*")
    other = PruningOptions(**{**vars(OPTIONS), "extra_rank": 2})
    with pytest.warns(UserWarning, match="again"):
        run_pruning(_problem(0.6), other, {}, RunContext(Cache(tmp_path)))
    entry.write_bytes(b"nonsense")
    with pytest.warns(UserWarning, match="again"):
        run_pruning(_problem(), OPTIONS, {}, RunContext(Cache(tmp_path)))


def test_predicted_equals_measured_where_the_loss_is_quadratic_and_bases_do_not_meet():
    """Whitened inputs make the Hessian of SVD coordinates diagonal."""
    model = Quadratic(5, 4)
    model.inputs = torch.linalg.qr(torch.randn(7, 4, dtype=torch.float64))[0] * 7**0.5
    layers = spectral(model)
    for layer in layers.values():
        layer.double()
    costs = {"layer": LayerCost(partial(layer_class("lowrank").cost, 5, 4), 20, 0)}
    objective = model.objective()
    problem = Problem(model, layers, objective, objective, costs, 0.45)
    options = PruningOptions(
        steps=0,
        prune_steps=1,
        extra_rank=0,
        importance="hutchinson",
        importance_options={"probes": 1, "negative": "keep"},
    )
    (event,) = run_pruning(problem, options, {}, RunContext()).prune_steps
    assert event.predicted == pytest.approx(event.measured, rel=QUADRATIC_RELATIVE)


def test_a_loss_that_is_not_finite_is_named():
    problem = _problem()
    broken = copy.deepcopy(problem.model)
    for parameter in broken.parameters():
        parameter.data.fill_(float("nan"))
    layers = {name: broken.get_submodule(name) for name in problem.layers}
    bad = Problem(
        broken, layers, problem.training, problem.scoring, problem.costs, problem.budget
    )
    with pytest.raises(NumericalError, match="NaN"):
        run_pruning(bad, OPTIONS, {}, RunContext())


def test_a_budget_that_one_basis_per_layer_exceeds_is_refused():
    with pytest.raises(InputError, match="budget"):
        run_pruning(_problem(0.01), OPTIONS, {}, RunContext())
