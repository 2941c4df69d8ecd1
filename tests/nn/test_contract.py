"""What every module and loss promises: gradients, copies, half precision, its constraint."""

from __future__ import annotations

import copy
import inspect
import io

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from spectrim.nn import NN
from spectrim.optim.riemannian_sgd import RiemannianSGD
from tests.tolerances import CONSTRAINT_FLOAT64, FLOAT64_RELATIVE, MODULE_BFLOAT16_RELATIVE

MODULES = [name for name in NN.names() if hasattr(NN.get(name), "MODULE")]
CONSTRAINED = [name for name in MODULES if hasattr(NN.get(name), "violation")]
STEPS = 100
modules = pytest.mark.parametrize("name", MODULES)


def converted(value: Tensor, dtype: torch.dtype) -> Tensor:
    if not value.is_floating_point():
        return value
    return value.detach().to(dtype).requires_grad_(value.requires_grad)


def built(
    name: str, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[nn.Module, list[Tensor]]:
    torch.manual_seed(seed)
    module, inputs = NN.get(name).example()
    return module.to(dtype), [converted(value, dtype) for value in inputs]


def trainable(module: nn.Module) -> dict[str, Tensor]:
    return {n: p for n, p in module.named_parameters() if p.requires_grad}


def train(module: nn.Module, inputs: list[Tensor], steps: int) -> None:
    """Steps towards a fixed target, of the parameters, or of the inputs if there are none."""
    moved = list(trainable(module).values()) or [x for x in inputs if x.requires_grad]
    optimizer = RiemannianSGD(moved, lr=0.05, momentum=0.0)
    for _ in range(steps):
        output = module(*inputs)
        target = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
        loss = (output - target).square().sum() if output.ndim else output
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(moved, 1.0)
        optimizer.step()


def close(a: Tensor, b: Tensor, relative: float = FLOAT64_RELATIVE) -> bool:
    return bool((a.double() - b.double()).norm() <= relative * b.double().norm())


@pytest.mark.parametrize("name", NN.names())
def test_entry_declares_itself(name):
    entry = NN.get(name)
    assert len(entry.__doc__.split()) > 20
    assert entry.REFERENCE
    if hasattr(entry, "MODULE"):
        assert issubclass(entry.MODULE, nn.Module)
        assert isinstance(entry.example()[0], entry.MODULE)
    else:
        assert callable(entry.INITIALIZER)


@pytest.mark.few(3)
@modules
def test_gradients_are_those_of_differences(name):
    module, inputs = built(name)
    names, fixed = list(trainable(module)), [x for x in inputs if not x.requires_grad]
    count = len(inputs) - len(fixed)

    def call(*values: Tensor) -> Tensor:
        moving, parameters = iter(values[:count]), values[count:]
        given = [next(moving) if x.requires_grad else x for x in inputs]
        return functional_call(module, dict(zip(names, parameters, strict=True)), tuple(given))

    values = [x for x in inputs if x.requires_grad]
    values += [p.detach().clone().requires_grad_() for p in trainable(module).values()]
    assert torch.autograd.gradcheck(call, values)


@modules
@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_state_dict_round_trip(name, mode):
    module, inputs = built(name)
    train(module, inputs, 1)
    other, _ = built(name, seed=1)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.train(mode)(*inputs), module.train(mode)(*inputs))


@modules
def test_a_deep_copy_is_equal_and_independent(name):
    module, inputs = built(name)
    twin = copy.deepcopy(module)
    assert torch.equal(twin(*inputs), module(*inputs))
    before = [parameter.clone() for parameter in module.parameters()]
    train(twin, [converted(value, torch.float64) for value in inputs], 1)
    assert all(
        torch.equal(a, b) and type(b) is type(c)
        for a, b, c in zip(before, module.parameters(), twin.parameters(), strict=True)
    )


@modules
def test_a_pickled_module_keeps_the_classes_of_its_parameters(name):
    module, inputs = built(name)
    stored = io.BytesIO()
    torch.save(module, stored)
    stored.seek(0)
    again = torch.load(stored, weights_only=False)
    assert [type(p) for p in again.parameters()] == [type(p) for p in module.parameters()]
    assert torch.equal(again(*inputs), module(*inputs))


@modules
def test_bfloat16_is_close_to_float64(name):
    module, inputs = built(name, torch.bfloat16)
    output = module(*inputs)
    exact = copy.deepcopy(module).double()(*(converted(x, torch.float64) for x in inputs))
    assert output.dtype == torch.bfloat16
    assert close(output, exact, MODULE_BFLOAT16_RELATIVE)


@modules
def test_representation_names_the_options(name):
    module, _ = built(name)
    given = inspect.signature(type(module).__init__).parameters.values()
    plain = [p.name for p in given if isinstance(p.default, bool | int | float | str)]
    assert plain
    assert [option for option in plain if f"{option}=" not in module.extra_repr()] == []


@pytest.mark.few(2)
@pytest.mark.parametrize("name", CONSTRAINED)
def test_constraint_holds_after_training(name):
    module, inputs = built(name)
    start = module(*inputs).detach()
    train(module, inputs, STEPS)
    assert not close(module(*inputs), start, 1e-3), "it has moved"
    assert NN.get(name).violation(module, *inputs) <= CONSTRAINT_FLOAT64


@pytest.mark.slow
@modules
def test_compiled_is_eager(name):
    """Traced forward and backward; no kernels are generated, which takes minutes on a CPU."""
    module, inputs = built(name)
    twin = copy.deepcopy(module)
    torch._dynamo.reset()
    compiled = torch.compile(twin, backend="aot_eager")
    moving = [x for x in inputs if x.requires_grad]
    results = []
    for run, parameters in ((module, trainable(module)), (compiled, trainable(twin))):
        output = run(*inputs)
        grads = torch.autograd.grad(output.square().sum(), [*moving, *parameters.values()])
        results.append([output, *grads])
    assert all(close(a, b) for a, b in zip(*results, strict=True))
