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
from spectrim.refinement import Progress
from spectrim.selection import (
    LayerCost,
    Objective,
    Problem,
    SelectionOptions,
    run_selection,
)
from spectrim.workspace import Workspace
from tests.selection.building import Quadratic, rows, spectral
from tests.tiny_models import TINY_MODELS
from tests.tolerances import QUADRATIC_RELATIVE

OPTIONS = SelectionOptions(
    steps=12, events=3, rows_per_step=4, scoring_rows=4, learning_rate=1e-2, new_bases=1
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
    options = SelectionOptions(
        **{**vars(OPTIONS), "importance": importance, "importance_options": more, "steps": 40}
    )
    state = run_selection(problem, options, Progress(), {})
    assert problem.kept() <= 0.4
    assert len(state.losses) == 40
    assert len(state.events) == 3
    last = state.events[-1]
    assert problem.scoring.value(problem.model) < last.loss
    kept = [event.kept_after for event in state.events]
    assert kept == sorted(kept, reverse=True)
    for name, layer in problem.layers.items():
        assert len(state.chosen[name]) == layer.bases
        assert layer.rank == layer.bases + 1


def test_events_tell_what_was_removed_and_what_it_did():
    problem = _problem()
    before = {name: layer.bases for name, layer in problem.layers.items()}
    start = problem.scoring.value(problem.model)
    options = SelectionOptions(**{**vars(OPTIONS), "steps": 0, "events": 1})
    (event,) = run_selection(problem, options, Progress(), {}).events
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


@pytest.mark.parametrize("tuned", ["coordinates", "bases"])
@pytest.mark.parametrize("steps", [0, 1, 3, 5, 10])
def test_a_stopped_run_ends_the_same(tmp_path, steps, tuned):
    key = {"test": steps}
    options = replace(OPTIONS, tuned=tuned)
    whole = _problem()
    expected = run_selection(whole, options, Progress(), key)
    place = Workspace(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_selection(
            _problem(), options, Progress(place, Stop(steps), seconds_between_saves=0), key
        )
    resumed = _problem()
    state = run_selection(resumed, options, Progress(place), key)
    ours, theirs = _state(resumed.model), _state(whole.model)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert state.losses == expected.losses
    assert [e.kept_after for e in state.events] == [e.kept_after for e in expected.events]


def test_bases_are_tuned_where_the_options_say_so():
    steps = {"steps": 20, "learning_rate": 1e-12, "new_bases": 0}
    losses = {}
    for tuned in ("coordinates", "bases"):
        problem = _problem()
        options = replace(OPTIONS, **steps, tuned=tuned, bases_rate=1e-2)
        run_selection(problem, options, Progress(), {})
        losses[tuned] = problem.training.value(problem.model)
        moved = {isinstance(layer.left, nn.Parameter) for layer in problem.layers.values()}
        assert moved == {tuned == "bases"}
    assert losses["bases"] < losses["coordinates"]


def test_a_finished_run_is_not_made_again(tmp_path):
    first = _problem()
    run_selection(first, OPTIONS, Progress(Workspace(tmp_path)), {})
    again = _problem()
    run_selection(again, OPTIONS, Progress(Workspace(tmp_path), Stop(0)), {})
    ours, theirs = _state(again.model), _state(first.model)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_state_of_another_run_is_left_alone(tmp_path):
    run_selection(_problem(), OPTIONS, Progress(Workspace(tmp_path)), {})
    (entry,) = tmp_path.glob("selection-*")
    other = SelectionOptions(**{**vars(OPTIONS), "new_bases": 2})
    with pytest.warns(UserWarning, match="again"):
        run_selection(_problem(0.6), other, Progress(Workspace(tmp_path)), {})
    entry.write_bytes(b"nonsense")
    with pytest.warns(UserWarning, match="again"):
        run_selection(_problem(), OPTIONS, Progress(Workspace(tmp_path)), {})


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
    options = SelectionOptions(
        steps=0,
        events=1,
        new_bases=0,
        importance="hutchinson",
        importance_options={"probes": 1, "negative": "keep"},
    )
    (event,) = run_selection(problem, options, Progress(), {}).events
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
        run_selection(bad, OPTIONS, Progress(), {})


def test_a_budget_that_one_basis_per_layer_exceeds_is_refused():
    with pytest.raises(InputError, match="budget"):
        run_selection(_problem(0.01), OPTIONS, Progress(), {})
