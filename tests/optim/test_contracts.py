"""What every optimizer promises."""

from __future__ import annotations

import copy
import inspect
import io

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from spectrim.errors import InputError, UnknownNameError
from spectrim.optim import (
    OPTIMIZERS,
    check_options,
    check_trainable,
    make_optimizer,
    measure_state,
    split_params,
)
from tests.optim.problems import GENERAL, MATRIX, NAMES, OPTIONS, Quadratic, optimizer_for, run
from tests.tiny_models import tiny_gpt2, tiny_llama, tiny_tied
from tests.tolerances import FLOAT32_RELATIVE, FLOAT64_RELATIVE

KEEPS_OBJECTS = ("galore", "soap")
"""Of pytorch_optimizer, in the state; such runs are not resumed from a snapshot."""
every = pytest.mark.parametrize("name", NAMES)
general = pytest.mark.parametrize("name", GENERAL)
matrix = pytest.mark.parametrize("name", MATRIX)


@every
def test_module_declares_itself(name):
    module = OPTIMIZERS.get(name)
    assert len(module.__doc__.split()) >= 20
    assert module.REFERENCE
    assert issubclass(module.OPTIMIZER, torch.optim.Optimizer)
    assert next(iter(inspect.signature(module.OPTIMIZER).parameters)) == "params"


@general
def test_an_ill_conditioned_quadratic_falls(name):
    problem = Quadratic()
    losses = run(problem, optimizer_for(name, problem), 120)
    assert losses[-1] < 0.2 * losses[0]
    away = [float((each.bias - 1).norm().detach()) for each in (problem, Quadratic())]
    assert away[0] < 0.95 * away[1], "the bias is stepped too"


@general
def test_runs_are_equal_to_the_bit(name):
    first, second = Quadratic(), Quadratic()
    assert run(first, optimizer_for(name, first), 9) == run(
        second, optimizer_for(name, second), 9
    )


@general
def test_a_loaded_state_goes_on_to_the_bit(name):
    problem = Quadratic()
    optimizer = optimizer_for(name, problem)
    run(problem, optimizer, 5)
    again = copy.deepcopy(problem)
    saved = io.BytesIO()
    torch.save(optimizer.state_dict(), saved)
    saved.seek(0)
    other = optimizer_for(name, again)
    other.load_state_dict(torch.load(saved, weights_only=name not in KEEPS_OBJECTS))
    assert run(problem, optimizer, 5) == run(again, other, 5)
    assert torch.equal(problem.weight, again.weight)


@general
def test_state_is_tensors_where_runs_are_resumed(name):
    problem = Quadratic()
    optimizer = optimizer_for(name, problem)
    run(problem, optimizer, 2)
    values = [v for state in optimizer.state.values() for v in state.values()]
    tensors = all(isinstance(value, Tensor) for value in values)
    assert tensors == (name not in KEEPS_OBJECTS)


@every
@pytest.mark.parametrize("shape", [(12, 8), (8, 12), (9, 9)], ids=str)
def test_state_bytes_are_as_stated(name, shape):
    module = OPTIMIZERS.get(name)
    weight = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    optimizer = make_optimizer(name, [weight], 0.01, OPTIONS.get(name))
    if name in GENERAL:
        for _ in range(2):
            weight.grad = torch.randn(shape, generator=torch.Generator().manual_seed(1))
            optimizer.step()
    counted = inspect.signature(module.state_bytes).parameters
    given = {n: v for n, v in OPTIONS.get(name, {}).items() if n in counted}
    assert measure_state(optimizer) == module.state_bytes(*shape, **given)


REDUCING = [name for name in GENERAL if hasattr(OPTIMIZERS.get(name), "REDUCES_TO")]


@pytest.mark.parametrize("name", REDUCING)
@pytest.mark.parametrize("shape", [(12, 8), (8, 12)], ids=str)
def test_it_is_torchs_where_it_says_so(name, shape):
    known, options = OPTIMIZERS.get(name).REDUCES_TO
    common = {"lr": 0.03, "weight_decay": options.get("weight_decay", 0.02)}
    if known == "AdamW":
        options = options | {"betas": (0.8, 0.9)}
    mine, theirs = (Quadratic(*shape, dtype=torch.float64) for _ in range(2))
    rest = {"weight_decay": common["weight_decay"]} | options
    optimizer = make_optimizer(name, [mine.weight], 0.03, rest)
    expected = getattr(torch.optim, known)(
        [theirs.weight], **common, **({"betas": (0.8, 0.9)} if known == "AdamW" else {})
    )
    run(mine, optimizer, 6)
    run(theirs, expected, 6)
    away = (mine.weight - theirs.weight).norm() / theirs.weight.norm()
    assert away < FLOAT64_RELATIVE


@general
def test_groups_and_schedules_set_the_rates(name):
    """A rate of zero leaves its group alone; a schedule scales the rates of both sorts."""
    still, moving = Quadratic(), Quadratic()
    groups = [{"params": list(still.parameters()), "lr": 0.0}]
    groups.append({"params": list(moving.parameters())})
    optimizer = make_optimizer(name, groups, 0.05, OPTIONS.get(name))
    rates = [group["lr"] for group in optimizer.param_groups]
    schedule = LambdaLR(optimizer, lambda step: 0.5**step)
    before = copy.deepcopy(still.state_dict())
    for _ in range(3):
        still.backward(), moving.backward()
        optimizer.step()
        schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [r / 8 for r in rates]
    assert all(torch.equal(before[n], t) for n, t in still.state_dict().items())
    assert not torch.equal(moving.weight, Quadratic().weight)
    assert not torch.equal(moving.bias, Quadratic().bias)


@general
def test_gradients_are_not_written_to(name):
    problem = Quadratic()
    optimizer = optimizer_for(name, problem)
    for _ in range(3):
        problem.backward()
        before = [p.grad.clone() for p in problem.parameters()]
        optimizer.step()
        assert all(
            torch.equal(p.grad, g) for p, g in zip(problem.parameters(), before, strict=True)
        )


@general
def test_a_closure_is_called_with_gradients(name):
    problem = Quadratic()
    loss = optimizer_for(name, problem).step(problem.backward)
    assert loss == problem.__class__().backward()


@general
def test_zero_gradients_leave_weights_finite(name):
    problem = Quadratic()
    optimizer = optimizer_for(name, problem)
    run(problem, optimizer, 2)
    for _ in range(3):
        for p in problem.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
    run(problem, optimizer, 2)
    assert all(bool(p.isfinite().all()) for p in problem.parameters())


@matrix
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_gradient_is_skipped(name, value):
    problem = Quadratic()
    optimizer = optimizer_for(name, problem)
    run(problem, optimizer, 2)
    problem.backward()
    problem.weight.grad[3, 1] = value
    weight, bias = problem.weight.detach().clone(), problem.bias.detach().clone()
    optimizer.step()
    assert torch.equal(problem.weight, weight)
    assert not torch.equal(problem.bias, bias)
    assert not bool(problem.weight.grad.isfinite().all()), "the gradient is the trainer's"
    losses = run(problem, optimizer, 40)
    assert losses[-1] < losses[0]


@matrix
def test_half_precision_keeps_its_state_in_float32(name):
    problem = Quadratic(dtype=torch.bfloat16)
    optimizer = optimizer_for(name, problem)
    run(problem, optimizer, 3)
    other = optimizer_for(name, copy.deepcopy(problem))
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for mine, theirs in zip(optimizer.state.values(), other.state.values(), strict=True):
        for entry, value in mine.items():
            if isinstance(value, Tensor):
                assert value.dtype == theirs[entry].dtype
                assert torch.equal(value, theirs[entry])
    if name in ("dct_adamw", "trion"):
        moments = optimizer.state[problem.weight].values()
        assert all(v.dtype in (torch.float32, torch.int64) for v in moments)


@pytest.mark.parametrize("build", [tiny_llama, tiny_tied, tiny_gpt2])
def test_split_leaves_tables_and_norms_to_adamw(build):
    model = build()
    matrices, rest = split_params(model, weight_decay=0.1, lr_rest=3e-3)
    names = {id(p): n for n, p in model.named_parameters()}
    found = {names[id(p)] for p in matrices["params"]}
    assert found == {
        n
        for n, p in model.named_parameters()
        if p.ndim == 2 and not any(word in n for word in ("embed", "lm_head", "wte", "wpe"))
    }
    assert len(matrices["params"]) + len(rest["params"]) == len(names)
    optimizer = make_optimizer("muon", [matrices, rest], 0.02)
    assert [g["lr"] for g in optimizer.param_groups] == [0.02, 3e-3]
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.0]


def test_wrong_names_and_options_are_named():
    with pytest.raises(UnknownNameError, match="did you mean 'muon'"):
        make_optimizer("muom", [nn.Parameter(torch.zeros(2, 2))], 0.1)
    with pytest.raises(InputError, match=r"no option 'rank_frac'.*rank_fraction"):
        check_options("trion", {"rank_frac": 0.5})
    with pytest.raises(InputError, match="residual of every example"):
        check_trainable("sven")
    problem = Quadratic()
    wrong = make_optimizer("trion", problem.parameters(), 0.1, {"basis": "x"})
    with pytest.raises(InputError, match="expected dct, hadamard"):
        run(problem, wrong, 1)
    with pytest.raises(InputError, match="cannot be negative"):
        make_optimizer("trion", Quadratic().parameters(), -0.1)


def test_a_named_group_of_non_matrices_is_adamw():
    mine, theirs = Quadratic(), Quadratic()
    group = {"params": list(mine.parameters()), "matrix": False, "adamw_ratio": 1.0}
    run(mine, make_optimizer("trion", [group], 0.01), 5)
    expected = torch.optim.AdamW(
        theirs.parameters(), lr=0.01, betas=(0.9, 0.95), weight_decay=0.0
    )
    run(theirs, expected, 5)
    assert (mine.weight - theirs.weight).norm() <= FLOAT32_RELATIVE * theirs.weight.norm()
