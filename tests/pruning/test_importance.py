"""What estimators promise: exact on quadratics, and what theory says of their noise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from spectrim.errors import InputError
from spectrim.pruning import IMPORTANCE, Importance, Objective, SpectralLinear, moments
from spectrim.pruning.importance import _probing, hutchinson
from spectrim.pruning.importance._importance import taylor
from tests.pruning.building import (
    Quadratic,
    coordinate_hessian,
    removals,
    rows,
    spectral,
    spectral_llama,
)
from tests.tolerances import (
    DIFFERENCE_RELATIVE,
    FLOAT64_RELATIVE,
    HUTCHINSON_VARIANCE_RELATIVE,
    QUADRATIC_RELATIVE,
)

NAMES = IMPORTANCE.names()
QUICK = {"hutchinson": {"probes": 2}}


def _estimate(name: str, model: nn.Module, layers: dict[str, SpectralLinear], objective, **o):
    options = IMPORTANCE.options(name, o)
    return IMPORTANCE.get(name).estimate(model, layers, objective, options)


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_finite_one_per_basis_and_leave_the_model_alone(name):
    model, layers = spectral_llama()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    objective = Objective(rows(), 4)
    found = _estimate(name, model, layers, objective, **QUICK.get(name, {}))
    for key, layer in layers.items():
        assert found.scores[key].shape == (layer.bases,)
        assert found.scores[key].isfinite().all()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(layer.coordinates._forward_hooks for layer in layers.values())


@pytest.mark.parametrize("name", NAMES)
def test_scores_do_not_depend_on_the_batch_split(name):
    model, layers = spectral_llama()
    options = QUICK.get(name, {})
    whole = _estimate(name, model, layers, Objective(rows(padded=True), 6), **options)
    split = _estimate(name, model, layers, Objective(rows(padded=True), 4), **options)
    for key in layers:
        scale = whole.scores[key].abs().max()
        torch.testing.assert_close(
            whole.scores[key], split.scores[key], rtol=1e-6, atol=1e-6 * float(scale)
        )


@pytest.mark.parametrize("name", NAMES)
def test_passes_are_counted(name):
    model, layers = spectral_llama()
    seen = 0

    def loss(given: nn.Module, batch) -> tuple[Tensor, int]:
        nonlocal seen
        seen += torch.is_grad_enabled() * len(batch.ids)
        return Objective(rows()).loss(given, batch)

    objective = Objective(rows(), 100, loss)
    found = _estimate(name, model, layers, objective, **QUICK.get(name, {}))
    assert seen / len(objective.rows) == pytest.approx(found.passes)
    assert found.passes <= 2 * 2 + 1


def test_second_order_is_exact_on_a_quadratic_loss():
    """Taylor's expansion with the exact Hessian, and Hutchinson over all sign vectors."""
    model = Quadratic(5, 4)
    layers = spectral(model)
    for layer in layers.values():
        layer.double()
    objective = model.objective()
    gradient, hessian = coordinate_hessian(model, layers, objective)
    measured = removals(model, layers, objective)["layer"]
    coordinates = torch.ones(4, dtype=torch.float64)
    exact = taylor(coordinates, gradient, hessian.diagonal())
    torch.testing.assert_close(exact, measured, rtol=QUADRATIC_RELATIVE, atol=1e-9)
    options = hutchinson.Options(probes=1, negative="keep")
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 4).double()
    estimates = [
        _with_signs(sign, model, layers, objective, options).scores["layer"] for sign in signs
    ]
    torch.testing.assert_close(
        torch.stack(estimates).mean(0), measured, rtol=QUADRATIC_RELATIVE, atol=1e-8
    )


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"magnitude"}))
def test_slopes_are_the_first_order_part_of_the_scores(name):
    model, layers = spectral_llama()
    objective = Objective(rows(), 100)
    found = _estimate(name, model, layers, objective, **QUICK.get(name, {}))
    first = _estimate("first_order", model, layers, objective)
    assert found.gradient_terms is not None
    for key, slope in found.gradient_terms.items():
        torch.testing.assert_close(slope, first.scores[key], rtol=1e-5, atol=1e-9)


def test_the_order_of_removal_takes_slopes_by_their_size_or_not_at_all():
    slopes, curved = torch.tensor([-3.0, 0.5, 0.0]), torch.tensor([1.0, 2.0, 4.0])
    found = Importance({"layer": slopes + curved}, 1, gradient_terms={"layer": slopes})
    assert found.order("signed")["layer"].tolist() == [-2.0, 2.5, 4.0]
    assert found.order("absolute")["layer"].tolist() == [4.0, 2.5, 4.0]
    assert found.order("none")["layer"].tolist() == [1.0, 2.0, 4.0]
    without = Importance({"layer": curved}, 0, units="singular value")
    assert without.order("absolute")["layer"] is curved


def _with_signs(sign: Tensor, model, layers, objective, options):
    """One probe along a given sign vector."""
    given = pytest.MonkeyPatch()
    given.setattr(_probing, "_rademacher", lambda like, generator: sign.to(like))
    try:
        return hutchinson.estimate(model, layers, objective, options)
    finally:
        given.undo()


def test_the_gradient_is_that_of_the_coordinates():
    model, layers = spectral_llama()
    objective = Objective(rows(padded=True), 4)
    found = moments(model, layers, objective)
    values = [layer.coordinates.value for layer in layers.values()]
    expected, _ = objective.gradients(model, values)
    for name, gradient in zip(layers, expected, strict=True):
        torch.testing.assert_close(
            found[name].gradient, gradient, rtol=FLOAT64_RELATIVE, atol=1e-12
        )


def test_kronecker_curvature_is_that_of_the_covariances():
    """(l^T C_g l)(r^T C_x r) from dense covariances of one layer's inputs and gradients."""
    model, layers = spectral_llama()
    name, layer = next(iter(layers.items()))
    objective = Objective(rows(padded=True), 100)
    batch = next(objective.batches())
    inputs: list[Tensor] = []
    gradients: list[Tensor] = []

    def keep(module: nn.Module, given: tuple[Tensor], output: Tensor) -> None:
        inputs.append(given[0].detach())
        output.register_hook(lambda g: gradients.append(g.detach()))

    hook = layer.register_forward_hook(keep)
    summed, scored = objective.loss(model, batch)
    summed.backward()
    hook.remove()
    x, g = inputs[0][batch.mask], gradients[0][batch.mask]
    in_covariance, out_covariance = x.T @ x / len(x), g.T @ g / len(g)
    expected = (
        torch.einsum("ok,op,pk->k", layer.left, out_covariance, layer.left)
        * torch.einsum("ki,ij,kj->k", layer.right, in_covariance, layer.right)
        * len(x)
        / scored
    )
    found = moments(model, layers, objective)[name].kronecker
    torch.testing.assert_close(found, expected.detach(), rtol=FLOAT64_RELATIVE, atol=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize("control", ["none", "kronecker"])
def test_hutchinson_approaches_the_exact_diagonal_with_the_stated_error(control):
    model, layers = spectral_llama()
    objective = Objective(rows(), 100)
    gradient, hessian = coordinate_hessian(model, layers, objective)
    exact = -gradient + 0.5 * hessian.diagonal()
    options = {"probes": 32, "negative": "keep", "control": control}
    found = _estimate("hutchinson", model, layers, objective, **options)
    assert found.errors is not None
    scores = torch.cat(list(found.scores.values()))
    errors = torch.cat(list(found.errors.values()))
    away = ((scores - exact) / errors).abs()
    assert away.median() < 1.2
    assert (away < 4).double().mean() > 0.97


@pytest.mark.slow
def test_variance_of_a_probe_is_the_off_diagonal_energy():
    """Var(z_i (H z)_i) = sum_{j != i} H_ij^2 for one Rademacher probe."""
    model, layers = spectral_llama()
    objective = Objective(rows(), 100)
    _, hessian = coordinate_hessian(model, layers, objective)
    expected = hessian.square().sum(1) - hessian.diagonal().square()
    options = hutchinson.Options(probes=200)
    products, signs = hutchinson._probed(model, layers, objective, options)
    samples = torch.cat([products[name] * signs[name] for name in layers], dim=1)
    ratio = samples.var(0).sum() / expected.sum()
    assert abs(float(ratio) - 1) < HUTCHINSON_VARIANCE_RELATIVE
    exact = torch.cat([signs[name] for name in layers], dim=1) @ hessian
    slope = torch.cat([products[name] for name in layers], dim=1)
    assert float((slope - exact).norm() / exact.norm()) < DIFFERENCE_RELATIVE


def test_the_control_variate_lowers_the_error():
    model, layers = spectral_llama()
    objective = Objective(rows(), 100)
    plain = _estimate("hutchinson", model, layers, objective, probes=16)
    controlled = _estimate(
        "hutchinson", model, layers, objective, probes=16, control="kronecker"
    )
    assert plain.errors is not None
    assert controlled.errors is not None
    before = torch.cat(list(plain.errors.values())).square().sum()
    after = torch.cat(list(controlled.errors.values())).square().sum()
    assert after < before


def test_half_precision_is_refused_where_differences_would_drown():
    model, layers = spectral_llama()
    model.to(torch.bfloat16)
    with pytest.raises(InputError, match="float32"):
        _estimate("hutchinson", model, layers, Objective(rows()))


@pytest.mark.parametrize("options", [{"probes": 0}, {"step": -1.0}, {"negative": "drop"}])
def test_wrong_options_are_refused(options):
    with pytest.raises(InputError):
        IMPORTANCE.options("hutchinson", options)
