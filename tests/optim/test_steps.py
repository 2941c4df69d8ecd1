"""The steps of each optimizer against their formulas in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy.fft import dct
from torch import Tensor, nn

from spectrim.errors import InputError
from spectrim.linalg.dct import orthogonal_basis
from spectrim.linalg.newton_schulz import BAND, COEFFICIENTS, orthogonalize
from spectrim.optim import make_optimizer
from spectrim.optim._subspace import longest
from spectrim.optim.kfac_adamw import KfacAdamW, Rotation
from tests.tolerances import BFLOAT16_RELATIVE, FLOAT32_RELATIVE, FLOAT64_RELATIVE

SHAPES = [(9, 6), (6, 9)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=["tall", "wide"])
LR, DECAY, STEPS = 0.03, 0.1, 4


def gradients(shape: tuple[int, int], count: int = STEPS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def stepped(name: str, shape: tuple[int, int], **options) -> tuple[Tensor, Tensor]:
    """The weight after some steps in float32, and at the start, both in float64."""
    start = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight = nn.Parameter(start.float())
    optimizer = make_optimizer(name, [weight], LR, options)
    for gradient in gradients(shape):
        weight.grad = gradient.float()
        optimizer.step()
    return weight.detach().double(), start.float().double()


def close(found: Tensor, expected: Tensor, start: Tensor, relative: float) -> bool:
    """Relative to the way that the weight went."""
    return bool((found - expected).norm() <= relative * (expected - start).norm())


# --- bases -------------------------------------------------------------------------


@pytest.mark.parametrize("size", [5, 8])
@pytest.mark.parametrize("name", ["dct", "hadamard", "random", "identity"])
def test_bases_are_orthogonal(name, size):
    if name == "hadamard" and size == 5:
        with pytest.raises(InputError, match="power of two"):
            orthogonal_basis(name, size)
        return
    basis = orthogonal_basis(name, size)
    assert (basis.T @ basis - torch.eye(size)).norm() < FLOAT64_RELATIVE


@pytest.mark.parametrize("size", [1, 5, 8])
def test_the_transform_is_scipys(size):
    rows = torch.randn(3, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.from_numpy(dct(rows.numpy(), type=2, norm="ortho", axis=1))
    assert (rows @ orthogonal_basis("dct", size) - expected).norm() < FLOAT64_RELATIVE


def test_selection_is_the_best_subset_and_contracts():
    matrix = gradients((9, 8), 1)[0]
    basis = orthogonal_basis("dct", 8)
    projected = matrix @ basis

    def left_out(indices) -> float:
        chosen = basis[:, list(indices)]
        return float((matrix - matrix @ chosen @ chosen.T).square().sum())

    errors = {i: left_out(i) for i in itertools.combinations(range(8), 3)}
    found = tuple(longest(projected, 3, 2).tolist())
    assert errors[found] == min(errors.values())
    kept = projected[:, list(found)].square().sum()
    assert errors[found] == pytest.approx(float(matrix.square().sum() - kept))
    assert errors[found] <= (1 - 3 / 8) * float(matrix.square().sum())


@shapes
def test_newton_schulz_brings_singular_values_near_one(shape):
    values = torch.linalg.svdvals(orthogonalize(gradients(shape, 1)[0]))
    assert BAND[0] < float(values.min()) <= float(values.max()) < BAND[1]


def reference_newton_schulz(matrix: Tensor) -> Tensor:
    """The polynomial on the singular values alone."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    s = s / s.norm()
    a, b, c = COEFFICIENTS
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    return u * s @ v


# --- steps -------------------------------------------------------------------------


def reference_dct_adamw(start: Tensor, fraction: float, feedback: bool, norm: int) -> Tensor:
    wide = start.shape[0] < start.shape[1]
    weight = (start.T if wide else start).clone()
    size = weight.shape[1]
    rank, basis = max(1, round(fraction * size)), orthogonal_basis("dct", size)
    mean, square = torch.zeros_like(weight), torch.zeros_like(weight)
    error, ages = torch.zeros_like(weight), torch.zeros(size)
    for gradient in gradients(tuple(start.shape)):
        wanted = (gradient.T if wide else gradient) + error
        spectrum = wanted @ basis
        order = torch.linalg.vector_norm(spectrum, ord=norm, dim=0).argsort(descending=True)
        chosen = torch.zeros(size, dtype=torch.bool)
        chosen[order[:rank]] = True
        for state in (mean, square):
            state[:, ~chosen] = 0
        ages = torch.where(chosen, ages + 1, 0.0)
        kept = torch.where(chosen, spectrum, 0.0)
        error = wanted - kept @ basis.T if feedback else error
        mean[:, chosen] = 0.9 * mean[:, chosen] + 0.1 * kept[:, chosen]
        square[:, chosen] = 0.95 * square[:, chosen] + 0.05 * kept[:, chosen] ** 2
        step = torch.zeros_like(weight)
        step[:, chosen] = (mean[:, chosen] / (1 - 0.9 ** ages[chosen])) / (
            (square[:, chosen] / (1 - 0.95 ** ages[chosen])).sqrt() + 1e-8
        )
        weight = (1 - LR * DECAY) * weight - LR * step @ basis.T
    return weight.T if wide else weight


@shapes
@pytest.mark.parametrize("feedback", [True, False])
@pytest.mark.parametrize("norm", [1, 2])
def test_dct_adamw(shape, feedback, norm):
    options = {"rank_fraction": 0.5, "error_feedback": feedback, "norm": norm}
    found, start = stepped("dct_adamw", shape, weight_decay=DECAY, **options)
    expected = reference_dct_adamw(start, 0.5, feedback, norm)
    assert close(found, expected, start, 10 * FLOAT32_RELATIVE)


def test_dct_adamw_error_feedback_telescopes():
    """What was chosen and what is left add up to all gradients."""
    weight = nn.Parameter(torch.zeros(9, 6, dtype=torch.float64))
    optimizer = make_optimizer("dct_adamw", [weight], LR, {"rank_fraction": 0.3})
    total, chosen = torch.zeros_like(weight), torch.zeros_like(weight)
    basis = orthogonal_basis("dct", 6)
    for gradient in gradients((9, 6)):
        before = optimizer.state[weight].get("error", torch.zeros_like(weight))
        weight.grad = gradient
        optimizer.step()
        back = basis[:, optimizer.state[weight]["indices"]]
        chosen += (gradient + before) @ back @ back.T
        total += gradient
    rest = total - chosen - optimizer.state[weight]["error"]
    assert rest.norm() < FLOAT64_RELATIVE * total.norm()


def test_dct_adamw_selects_at_its_gap_only():
    weight = nn.Parameter(torch.zeros(9, 6))
    options = {"rank_fraction": 0.5, "update_gap": 3, "error_feedback": False}
    optimizer = make_optimizer("dct_adamw", [weight], LR, options)
    chosen = []
    for gradient in gradients((9, 6), 7):
        weight.grad = gradient.float()
        optimizer.step()
        chosen.append(optimizer.state[weight]["indices"].tolist())
    assert chosen[0] == chosen[1] == chosen[2]
    assert chosen[3] == chosen[4] == chosen[5]
    assert len({tuple(indices) for indices in chosen}) > 1


@shapes
@pytest.mark.parametrize("scale", ["spectral", "rms", "dion", "none"])
def test_trion(shape, scale):
    found, start = stepped("trion", shape, rank_fraction=0.5, scale=scale, weight_decay=DECAY)
    wide = shape[0] < shape[1]
    weight = (start.T if wide else start).clone()
    momentum, basis = torch.zeros_like(weight), orthogonal_basis("dct", 6)
    m, n = shape
    factor = {"spectral": max(1, m / n) ** 0.5, "rms": 0.2 * max(m, n) ** 0.5}
    factor |= {"dion": (m / n) ** 0.5, "none": 1.0}
    for gradient in gradients(shape):
        momentum = momentum + (gradient.T if wide else gradient)
        spectrum = momentum @ basis
        chosen = spectrum.norm(dim=0).argsort(descending=True)[:3]
        part, back = spectrum[:, chosen], basis[:, chosen].T
        momentum = momentum - 0.05 * part @ back
        step = reference_newton_schulz(part) @ back
        weight = (1 - LR * DECAY) * weight - LR * factor[scale] * step
    expected = weight.T if wide else weight
    assert close(found, expected, start, 10 * FLOAT32_RELATIVE)


def reference_auon(start: Tensor, direction, brake: str = "published", gamma=1.5) -> Tensor:
    weight, momentum = start.clone(), torch.zeros_like(start)
    for gradient in gradients(tuple(start.shape)):
        momentum = 0.95 * momentum + 0.05 * gradient
        step = direction(0.05 * gradient + 0.95 * momentum)
        unit = step / step.norm()
        if brake == "unit_rms":
            spread = (gamma * step.numel() ** 0.5 * unit).cosh().square().mean().sqrt()
            factor = spread / torch.tensor(gamma, dtype=torch.float64).cosh()
        else:
            factor = (gamma * unit).cosh().square().mean().sqrt()
        weight = (1 - LR * DECAY) * weight - LR * step / factor
    return weight


@shapes
@pytest.mark.parametrize("brake", ["published", "unit_rms"])
@pytest.mark.parametrize("name", ["auon", "hybrid_auon"])
def test_auon(shape, brake, name):
    direction = {"auon": lambda g: g, "hybrid_auon": reference_newton_schulz}[name]
    found, start = stepped(name, shape, brake=brake, weight_decay=DECAY)
    expected = reference_auon(start, direction, brake)
    assert close(found, expected, start, 20 * FLOAT32_RELATIVE)


@pytest.mark.parametrize("name", ["auon", "hybrid_auon"])
def test_the_published_brake_is_within_its_bounds_and_gone_without_gamma(name):
    start = torch.randn(64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ways = []
    for gamma in (1.5, 0.0):
        weight = nn.Parameter(start.clone())
        optimizer = make_optimizer(name, [weight], LR, {"gamma": gamma})
        weight.grad = gradients((64, 64), 1)[0]
        optimizer.step()
        ways.append(start - weight.detach())
    ratio = float(ways[1].norm() / ways[0].norm())
    sinh = torch.tensor([1.5 / 64, 1.5], dtype=torch.float64).sinh().square()
    assert (1 + sinh[0]) ** 0.5 - 1e-6 <= ratio <= (1 + sinh[1] / 64**2) ** 0.5 + 1e-6
    if name == "auon":
        assert (ways[1] - LR * (0.05 + 0.95 * 0.05) * gradients((64, 64), 1)[0]).norm() < 1e-6


@shapes
def test_muon_is_near_the_polynomial(shape):
    """torch multiplies in bfloat16."""
    found, start = stepped("muon", shape, weight_decay=DECAY)
    weight, momentum = start.clone(), torch.zeros_like(start)
    for gradient in gradients(shape):
        momentum = 0.95 * momentum + 0.05 * gradient
        step = reference_newton_schulz(0.05 * gradient + 0.95 * momentum)
        weight = (1 - LR * DECAY) * weight - LR * max(1, shape[0] / shape[1]) ** 0.5 * step
    assert close(found, weight, start, 2 * BFLOAT16_RELATIVE)


def adam(states: dict, gradient: Tensor, number: int, betas=(0.9, 0.95), eps=1e-8) -> Tensor:
    states["m"] = betas[0] * states.get("m", 0) + (1 - betas[0]) * gradient
    states["v"] = betas[1] * states.get("v", 0) + (1 - betas[1]) * gradient**2
    mean = states["m"] / (1 - betas[0] ** number)
    return mean / ((states["v"] / (1 - betas[1] ** number)).sqrt() + eps)


@shapes
def test_galore(shape):
    found, start = stepped("galore", shape, rank=3, update_gap=100, scale=0.5)
    weight, states, basis = start.clone(), {}, None
    for number, gradient in enumerate(gradients(shape), 1):
        if basis is None:
            u, _, v = torch.linalg.svd(gradient, full_matrices=False)
            basis = v[:3].T if shape[0] >= shape[1] else u[:, :3]
        right = shape[0] >= shape[1]
        small = gradient @ basis if right else basis.T @ gradient
        step = adam(states, small, number, eps=0.0)
        weight = weight - LR * 0.5 * (step @ basis.T if right else basis @ step)
    assert close(found, weight, start, 1e-3), "eps is added before the correction there"


@shapes
def test_soap(shape):
    """Within the first refresh: the eigenbases of the first gradient, which is not stepped on.

    The library projects, unlike Adam, with eigenvectors in descending order; Adam's step does
    not depend on their order or signs.
    """
    found, start = stepped("soap", shape, update_gap=100)
    all_of_them = gradients(shape)
    left = torch.linalg.eigh(all_of_them[0] @ all_of_them[0].T).eigenvectors
    right = torch.linalg.eigh(all_of_them[0].T @ all_of_them[0]).eigenvectors
    weight, states = start.clone(), {}
    for number, gradient in enumerate(all_of_them[1:], 1):
        weight = weight - LR * left @ adam(states, left.T @ gradient @ right, number) @ right.T
    null = abs(shape[0] - shape[1])
    assert null, "a null space has no basis of its own, so only the rest is compared"
    side = slice(null, None)
    if shape[0] > shape[1]:
        away = left[:, side].T @ (found - weight), left[:, side].T @ (weight - start)
    else:
        away = (found - weight) @ right[:, side], (weight - start) @ right[:, side]
    assert away[0].norm() <= 1e-3 * away[1].norm()


@shapes
def test_kfac_adamw(shape):
    rows, columns = shape
    covariances = [torch.cov(gradients((n, 3 * n), 1)[0]) for n in (rows, columns)]
    rotation = Rotation.of(*covariances)
    start = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    start = start.float().double()
    weight = nn.Parameter(start.float())
    optimizer = KfacAdamW([weight], LR, (0.9, 0.95), DECAY, rotations={weight: rotation})
    left, right = (torch.linalg.eigh(c).eigenvectors for c in covariances)
    expected, states = start.clone(), {}
    for number, gradient in enumerate(gradients(shape), 1):
        weight.grad = gradient.float()
        optimizer.step()
        step = left @ adam(states, left.T @ gradient @ right, number) @ right.T
        expected = (1 - LR * DECAY) * expected - LR * step
    assert close(weight.detach().double(), expected, start, 20 * FLOAT32_RELATIVE)
