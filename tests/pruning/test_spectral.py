from __future__ import annotations

import torch

from spectrim.decompositions import decompose_layer
from spectrim.linalg.truncated import Factors
from spectrim.pruning import SpectralLinear, thin_svd
from spectrim.registry import NoOptions
from spectrim.statistics import LayerProblem
from tests.tolerances import FLOAT32_RELATIVE, FLOAT64_RELATIVE


def _layer(
    out_features: int = 9, in_features: int = 6
) -> tuple[torch.nn.Linear, SpectralLinear]:
    torch.manual_seed(0)
    dense = torch.nn.Linear(in_features, out_features)
    problem = LayerProblem("layer", dense.weight.detach(), dense.bias.detach(), None)
    factors = decompose_layer("svd", problem, NoOptions())
    return dense, SpectralLinear.from_factors(factors, dense.bias.detach())


def test_all_bases_compute_the_dense_layer():
    dense, layer = _layer()
    x = torch.randn(4, 3, 6)
    torch.testing.assert_close(layer(x), dense(x), rtol=FLOAT32_RELATIVE, atol=1e-6)


def test_new_bases_change_nothing_until_they_are_trained():
    _, layer = _layer()
    x = torch.randn(5, 6)
    before = layer(x)
    layer.add_bases(3, seed=1)
    assert torch.equal(layer(x), before)
    assert layer.rank == 6 + 3
    gradient = torch.autograd.grad(layer(x).sum(), layer.new_left)[0]
    assert gradient.abs().min() > 0


def test_no_dense_weight_is_formed():
    _, layer = _layer(40, 30)
    sizes: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and func is not torch.ops.aten.t.default:
                sizes.append(result.numel())
            return result

    layer.prune(torch.arange(2))
    with Watch():
        layer(torch.randn(1, 30)).sum().backward()
    assert max(sizes) < 40 * 30


def test_free_bases_compute_the_same_and_stay_free_when_others_leave():
    _, layer = _layer()
    x = torch.randn(5, 6)
    before = layer(x)
    layer.unfreeze()
    assert torch.equal(layer(x), before)
    layer.prune(torch.tensor([1, 4]))
    names = {name for name, _ in layer.named_parameters()}
    assert {"left", "right"} <= names
    assert layer.left.shape == (9, 2)


def test_keeping_some_bases_is_dropping_the_others():
    _, layer = _layer()
    x = torch.randn(5, 6)
    kept = torch.tensor([0, 2, 5])
    with torch.no_grad():
        layer.coordinates.value[[1, 3, 4]] = 0.0
    expected = layer(x)
    layer.prune(kept)
    assert layer.bases == 3
    torch.testing.assert_close(layer(x), expected, rtol=FLOAT32_RELATIVE, atol=1e-6)


def test_singular_values_of_svd_bases_follow_the_coordinates():
    dense, layer = _layer()
    with torch.no_grad():
        layer.coordinates.value.mul_(-2.0)
    expected = 2.0 * torch.linalg.svdvals(dense.weight.detach())
    torch.testing.assert_close(layer.singular_values(), expected, rtol=1e-4, atol=1e-6)


def test_merged_and_refactored_give_the_same_weight():
    _, layer = _layer()
    layer.add_bases(2, seed=0)
    with torch.no_grad():
        layer.new_left.normal_()
        layer.coordinates.value.uniform_(0.5, 1.5)
    left, right = layer.fold()
    weight = left @ right
    thin = thin_svd(left, right, smallest=1e-3)
    torch.testing.assert_close(thin.left @ thin.right, weight, rtol=FLOAT64_RELATIVE, atol=1e-9)
    torch.testing.assert_close(
        thin.spectrum, torch.linalg.svdvals(weight)[: len(thin.spectrum)], rtol=1e-8, atol=1e-9
    )
    torch.testing.assert_close(thin.left.norm(dim=0), thin.right.norm(dim=1))


def test_refactoring_drops_small_singular_values_but_never_all():
    left = torch.diag(torch.tensor([1.0, 1e-6])).double()
    assert len(thin_svd(left, torch.eye(2).double(), smallest=1e-3).spectrum) == 1
    assert len(thin_svd(0 * left, torch.eye(2).double(), smallest=1e-3).spectrum) == 1


def test_factors_of_any_balance_give_terms_of_equal_norm():
    factors = Factors(torch.eye(3).double() * 100, torch.eye(3).double() / 100, torch.ones(3))
    layer = SpectralLinear.from_factors(factors, None)
    torch.testing.assert_close(layer.left.norm(dim=0), layer.right.norm(dim=1))
    torch.testing.assert_close(layer(torch.eye(3)), torch.eye(3))
