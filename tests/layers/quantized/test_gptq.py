"""Error feedback against an entry-by-entry twin, rounding to nearest, and its limits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from spectrim.errors import InputError, NumericalError
from spectrim.layers.quantized import QUANTIZERS, CompressedLinear
from spectrim.layers.quantized.rtn import SHARES, make_grid, search_grid
from spectrim.layers.quantized.rtn import Options as RtnOptions
from spectrim.statistics import LayerProblem
from tests.layer_problems import LAYER, random_layer, random_tokens, statistics_of
from tests.tolerances import FLOAT64_RELATIVE

NEEDED = ("gradient_covariance", "input_covariance")
FEEDBACK = "spectrim.layers.quantized._error_feedback._TILE"
SIDES = pytest.mark.parametrize("two_sided", [False, True], ids=["one-sided", "two-sided"])


def random_problem(shape: tuple[int, int], seed: int = 0, count: int = 512) -> LayerProblem:
    """A layer whose inputs and gradients have correlations and scales of a factor 30."""
    weight, _ = random_layer(shape, seed)
    tokens = random_tokens(weight, None, count)
    x, g = (v * torch.logspace(0, 1.5, v.shape[1]) for v in (tokens.x, tokens.g))
    statistics = statistics_of(replace(tokens, x=x, g=g), shape, NEEDED)
    return LayerProblem(LAYER, weight.float(), None, {n: statistics[n] for n in NEEDED})


def identity_problem(shape: tuple[int, int]) -> LayerProblem:
    tokens = random_tokens(random_layer(shape)[0], None, sum(shape))
    x = torch.eye(sum(shape), dtype=torch.float64)
    tokens = replace(tokens, x=x[:, : shape[1]], g=x[:, : shape[0]])
    statistics = statistics_of(tokens, shape, NEEDED)
    return LayerProblem(LAYER, random_layer(shape)[0].float(), None, statistics)


def quantized(name: str, given: LayerProblem, **options: object) -> CompressedLinear:
    return QUANTIZERS.get(name).compress(given, QUANTIZERS.options(name, options))


def loss(given: LayerProblem, layer: CompressedLinear) -> float:
    error = given.weight.double() - layer.dense()[0]
    outputs, inputs = map(given.statistic, NEEDED)
    return float(((outputs @ error) * (error @ inputs)).sum())


def damped(covariance: Tensor, damping: float) -> Tensor:
    unit = torch.eye(len(covariance), dtype=covariance.dtype)
    return covariance + damping * covariance.diagonal().mean() * unit


def twin(given: LayerProblem, options: RtnOptions, strip: int, two_sided: bool) -> Tensor:
    """Round each entry in turn and move its error to the best continuous values of the rest.

    The entries left minimize the loss given those that are fixed: a linear system over all of
    vec(W), solved anew for every entry. Grids are fitted when a group begins. Two-sided, strips
    of rows are rounded one after another, each along its diagonals.
    """
    outputs, inputs = (damped(given.statistic(name), 1e-2) for name in NEEDED)
    if not two_sided:
        outputs = torch.eye(len(outputs), dtype=torch.float64)
    hessian = torch.kron(outputs, inputs)
    weight = given.weight.double().flatten()
    rows, columns = given.weight.shape
    target, result = weight.clone(), weight.clone()
    step = {}
    for at in range(len(weight)):
        i, j = divmod(at, columns)
        step.setdefault((i // strip, i % strip + j) if two_sided else (0, j), []).append(at)
    grids: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    fixed: list[int] = []
    for _, together in sorted(step.items()):
        for at in (at for at in together if at % columns % options.group == 0):
            values = result[at : min(at + options.group, (at // columns + 1) * columns)]
            grids[at // columns, at % columns // options.group] = make_grid(
                values.float(), options
            )
        for at in together:
            grid = grids[at // columns, at % columns // options.group]
            scale, zero = (value.double() for value in grid)
            code = ((result[at] / scale).round() + zero).clamp(0, 2**options.bits - 1)
            result[at] = scale * (code - zero)
            fixed.append(at)
            if rest := sorted(set(range(len(weight))) - set(fixed)):
                pull = hessian[rest][:, fixed] @ (target - result)[fixed]
                result[rest] = target[rest] + torch.linalg.solve(hessian[rest][:, rest], pull)
    return result.view(rows, columns)


@SIDES
@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize(("group", "tile"), [(4, 64), (5, 64), (100, 3), (2, 4)])
def test_against_a_linear_system_for_every_entry(group, tile, scheme, two_sided, monkeypatch):
    monkeypatch.setattr(FEEDBACK, tile)
    given = random_problem((7, 12))
    options = {"bits": 3, "group": group, "scheme": scheme}
    plain = {"two_sided": two_sided, "act_order": False, "grid": "range"}
    layer = quantized("gptq", given, **options, **plain)
    expected = twin(given, RtnOptions(**options), tile, two_sided)
    difference = (layer.dense()[0] - expected).norm()
    assert float(difference) <= FLOAT64_RELATIVE * float(expected.norm())


@pytest.mark.few(3)
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_loses_less_than_rounding_to_nearest(bits, seed):
    given = random_problem((48, 72), seed)
    options = {"bits": bits, "group": 16}
    nearest = loss(given, quantized("rtn", given, **options))
    one = loss(given, quantized("gptq", given, **options, two_sided=False))
    both = loss(given, quantized("gptq", given, **options))
    assert both < one < nearest


@pytest.mark.few(2)
@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric", "centered"])
@pytest.mark.parametrize("bits", [2, 3])
def test_a_searched_grid_loses_less(bits, scheme):
    given = random_problem((48, 72))
    options = {"bits": bits, "group": 24, "scheme": scheme}
    shrunk = loss(given, quantized("gptq", given, **options))
    assert shrunk < loss(given, quantized("gptq", given, **options, grid="range"))


def test_a_search_is_over_ranges_of_the_group():
    generator = torch.Generator().manual_seed(0)
    values, importance = (torch.rand(5, 16, generator=generator) for _ in range(2))
    values -= 0.4
    options = RtnOptions(bits=2)
    found = search_grid(values, importance, options)
    for row, weights, scale, zero in zip(values, importance, *found, strict=True):
        errors = []
        for share in SHARES:
            step, origin = (t.float() for t in make_grid(share * row, options))
            codes = ((row / step).round() + origin).clamp(0, 3)
            errors.append(float((weights * (row - step * (codes - origin)) ** 2).sum()))
        step, origin = make_grid(SHARES[errors.index(min(errors))] * row, options)
        assert (scale, zero) == (step, origin)


@SIDES
@pytest.mark.parametrize("act_order", [False, True])
def test_identity_covariances_give_rtn(two_sided, act_order):
    given = identity_problem((20, 50))
    options = {"bits": 3, "group": 16}
    chosen = {"two_sided": two_sided, "act_order": act_order, "grid": "range"}
    layer = quantized("gptq", given, **options, **chosen)
    assert torch.equal(layer.dense()[0], quantized("rtn", given, **options).dense()[0])


@SIDES
def test_damping_is_added_to_the_covariances(two_sided):
    given = random_problem((20, 50))
    options = {"bits": 3, "group": 16, "two_sided": two_sided}
    statistics = {name: damped(given.statistic(name), 0.5) for name in NEEDED}
    before = quantized("gptq", replace(given, statistics=statistics), **options, damping=0)
    layer = quantized("gptq", given, **options, damping=0.5).dense()[0]
    assert torch.equal(layer, before.dense()[0])
    assert not torch.equal(layer, quantized("gptq", given, **options, damping=0).dense()[0])


@SIDES
def test_few_tokens(two_sided):
    """Covariances of rank five, and an input that is always zero."""
    given = random_problem((24, 64), count=5)
    given.statistic("input_covariance")[3] = 0
    given.statistic("input_covariance")[:, 3] = 0
    layer = quantized("gptq", given, bits=3, two_sided=two_sided)
    assert layer.validate() is None
    assert loss(given, layer) < loss(given, quantized("rtn", given, bits=3))


def test_is_stored_as_rtn():
    given = random_problem((20, 50))
    options = {"bits": 3, "group": 16, "scheme": "symmetric"}
    layer, nearest = quantized("gptq", given, **options), quantized("rtn", given, **options)
    assert type(layer) is type(nearest)
    assert layer.stated == nearest.stated
    sizes = [
        {n: (t.shape, t.dtype) for n, t in x.state_dict().items()} for x in (layer, nearest)
    ]
    assert sizes[0] == sizes[1]


@SIDES
@pytest.mark.parametrize("name", NEEDED)
def test_covariances_that_are_not_finite(name, two_sided):
    given = random_problem((8, 12))
    given.statistic(name)[0, 0] = float("nan")
    if name == "gradient_covariance" and not two_sided:
        assert quantized("gptq", given, two_sided=False).validate() is None
        return
    with pytest.raises(NumericalError, match=f"{name.replace('_', ' ')} of {LAYER}"):
        quantized("gptq", given, two_sided=two_sided)


@pytest.mark.parametrize("options", [{"damping": 2}, {"bits": 1}, {"act_order": "no way"}])
def test_options_that_do_not_exist(options):
    with pytest.raises(InputError):
        QUANTIZERS.options("gptq", options)
