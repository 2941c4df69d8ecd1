"""Each adapter against its equations, in float64 on random weights of every shape."""

from __future__ import annotations

import math

import peft
import pytest
import torch
from torch import Tensor

from spectrim.adapters import ADAPTERS, PiSSAConfig, penalty
from spectrim.adapters._spectral import (
    AdaptedWeight,
    pair_of,
    truncated_pair,
    update_of,
)
from spectrim.adapters._tuner import spectral_layers
from spectrim.errors import InputError
from tests.adapters.building import adapted, config, logits, moved, names, trained
from tests.tiny_models import TINY_MODELS, tiny_tokens
from tests.tolerances import MERGED_ABSOLUTE

SHAPES = [(24, 20), (16, 16), (12, 30)]
shapes = pytest.mark.parametrize("shape", SHAPES)


def matrix(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


class Case:
    """A method on one weight, with its trained numbers at a random place."""

    def __init__(self, name: str, weight: Tensor, size: float = 0.3, **options):
        self.method = ADAPTERS.get(name)
        self.options = ADAPTERS.options(name, options)
        self.parts = self.method.start(AdaptedWeight(name, weight), self.options)
        self.tensors = self.parts.fixed | {
            own: tensor + size * matrix(tensor.shape, seed)
            for seed, (own, tensor) in enumerate(self.parts.trained.items())
        }

    def update(self, **changed: Tensor) -> Tensor:
        return update_of(self.method, self.tensors | changed, self.options)

    def start(self) -> Tensor:
        return self.update(**self.parts.trained)


@shapes
@names
def test_pair_is_the_update_and_its_rank_is_stated(name, shape):
    given = {} if name == "obd" else {"r": 3}
    made = Case(name, matrix(shape), **({"decomposition": "svd"} if name == "obd" else given))
    assert not made.start().any()
    left, right = pair_of(made.method, made.tensors, made.options)
    torch.testing.assert_close(left @ right, made.update())
    whole = truncated_pair(left, right, 2)
    found = torch.linalg.svdvals(made.update())
    assert whole[2] == pytest.approx(float(found[2:].square().sum()))
    torch.testing.assert_close(
        torch.linalg.svdvals(whole[0] @ whole[1])[:2], found[:2], rtol=1e-8, atol=1e-10
    )


@names
def test_gradient_is_that_of_differences(name):
    made = Case(
        name, matrix((6, 5)), **({"decomposition": "svd"} if name == "obd" else {"r": 2})
    )
    target = matrix((6, 5), 9)

    def loss(*values: Tensor) -> Tensor:
        return (
            made.update(**dict(zip(made.parts.trained, values, strict=True))) * target
        ).sum()

    values = [made.tensors[own].requires_grad_(True) for own in made.parts.trained]
    assert torch.autograd.gradcheck(loss, values)


def test_pissa_starts_and_steps_as_pefts():
    """Equal to PEFT's own up to signs of pairs, and to one step of SGD on both factors."""
    ours = peft.get_peft_model(TINY_MODELS["llama"](), PiSSAConfig(r=4))
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "gate_proj", "down_proj"]
    own = peft.LoraConfig(r=4, lora_alpha=4, init_lora_weights="pissa", target_modules=targets)
    theirs = peft.get_peft_model(TINY_MODELS["llama"](), own)
    ids = tiny_tokens()
    for model in (ours, theirs):
        model(input_ids=ids, labels=ids).loss.backward()
        torch.optim.SGD(trained(model).values(), lr=0.5).step()
    torch.testing.assert_close(logits(ours), logits(theirs), atol=MERGED_ABSOLUTE, rtol=0)
    assert sum(p.numel() for p in trained(ours).values()) == sum(
        p.numel() for p in trained(theirs).values()
    )


@shapes
@pytest.mark.parametrize(("name", "first"), [("pissa", True), ("milora", False)])
def test_pissa_and_milora_train_the_two_ends(name, first, shape):
    weight = matrix(shape)
    made = Case(name, weight, r=3)
    left, spectrum, right = torch.linalg.svd(weight, full_matrices=False)
    part = slice(3) if first else slice(len(spectrum) - 3, None)
    expected = left[:, part] * spectrum[part] @ right[part]
    torch.testing.assert_close(made.parts.fixed["left"] @ made.parts.fixed["right"], expected)
    norms = [made.parts.fixed[side].norm() for side in ("left", "right")]
    assert float(norms[0]) == pytest.approx(float(norms[1]))


@shapes
def test_signs_do_not_depend_on_the_decomposition(shape):
    weight = matrix(shape)
    found = AdaptedWeight("w", weight).directions()
    flips = torch.where(matrix((min(shape),), 3) > 0, 1.0, -1.0).double()
    svd = torch.linalg.svd

    def flipped(*given, **named):
        left, spectrum, right = svd(*given, **named)
        return left * flips, spectrum, flips[:, None] * right

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.linalg, "svd", flipped)
        again = AdaptedWeight("w", weight).directions()
    assert torch.equal(found.left, again.left)
    assert torch.equal(found.right, again.right)


@shapes
def test_svfit_removes_a_term_and_has_its_gradient(shape):
    weight = matrix(shape)
    made = Case("svfit", weight)
    core = torch.zeros_like(made.parts.trained["core"])
    core[2] = -1
    spectrum = torch.linalg.svdvals(weight + made.update(core=core))
    expected = torch.linalg.svdvals(weight)
    torch.testing.assert_close(spectrum[:-1], torch.cat([expected[:2], expected[3:]]))
    assert spectrum[-1] < 1e-12
    gradient = matrix(shape, 5)
    t = torch.zeros_like(core).requires_grad_(True)
    (made.update(core=t) * gradient).sum().backward()
    found = AdaptedWeight("w", weight).directions()
    by_formula = ((found.left.T @ gradient) * found.right).sum(1) * found.spectrum
    torch.testing.assert_close(t.grad, by_formula)


@pytest.mark.parametrize(
    ("core", "count"), [("diagonal", 6), ("band", 6 + 2 * 5), ("full", 36)]
)
def test_svfit_counts_its_numbers(core, count):
    assert len(Case("svfit", matrix((9, 12)), r=6, core=core).parts.trained["core"]) == count


def test_svfit_full_core_is_any_mixing_of_the_directions():
    weight = matrix((7, 9))
    made = Case("svfit", weight, core="full", r=3)
    mixing = made.tensors["core"].view(3, 3)
    expected = made.parts.fixed["left"] @ mixing @ made.parts.fixed["right"]
    torch.testing.assert_close(made.update(), expected)


@shapes
def test_salt_is_its_middle_matrix(shape):
    weight = matrix(shape)
    made = Case("salt", weight, r=2, share=0.25)
    found, tensors = AdaptedWeight("w", weight).directions(), made.tensors
    count = math.ceil(0.25 * min(shape))
    middle = torch.diag(found.spectrum)
    for i in range(count):
        middle[i, i] = (1 + tensors["scale"][i]) * found.spectrum[i] + tensors["shift"][i]
    middle[count:, count:] += tensors["block_left"] @ tensors["block_right"]
    torch.testing.assert_close(weight + made.update(), found.left @ middle @ found.right)
    numbers = sum(t.numel() for t in made.parts.trained.values())
    assert numbers == 2 * count + 2 * 2 * (min(shape) - count)
    relu = Case("salt", weight, r=2, share=0.25, relu=True)
    relu.tensors = tensors
    torch.testing.assert_close(weight + relu.update(), found.left @ middle.relu() @ found.right)


def test_salt_of_all_values_is_svfit_and_of_none_a_lora():
    weight, t = matrix((9, 7)), matrix((7,), 3)
    salt, svfit = Case("salt", weight, share=1.0), Case("svfit", weight)
    scaled = salt.update(scale=t, shift=torch.zeros_like(t))
    torch.testing.assert_close(scaled, svfit.update(core=t))
    plain = Case("salt", torch.arange(9.0, 0, -1).double().diag(), r=3, share=0.0)
    product = plain.tensors["block_left"] @ plain.tensors["block_right"]
    torch.testing.assert_close(plain.update(), product)


def test_salt_with_relu_has_no_first_gradient_off_the_diagonal():
    made = Case("salt", matrix((9, 9)), r=2, share=0.25, relu=True)
    right = made.parts.trained["block_right"].clone().requires_grad_(True)
    block = torch.eye(len(made.parts.trained["block_left"])).double()
    values = made.parts.trained | {"block_left": block, "block_right": block.clone() * 0}
    values["block_right"] = right = values["block_right"].requires_grad_(True)
    (made.update(**values) * matrix((9, 9), 4)).sum().backward()
    assert right.grad is not None
    assert not (right.grad - right.grad.diagonal().diag()).any()
    assert right.grad.any()


@pytest.mark.parametrize(
    ("values", "expected"), [((1.0, 0.9, 0.8, 0.01, 0.009, 0.008), 3), ((1.0, 0.001), 2)]
)
def test_soka_finds_the_break_of_a_spectrum(values, expected):
    from spectrim.adapters.soka import elbow

    assert elbow(torch.tensor(values).double()) == expected


@pytest.mark.parametrize(("energy", "expected"), [(0.5, 1), (0.9, 2), (0.999, 3)])
def test_soka_takes_the_smallest_rank_of_an_energy(energy, expected):
    from spectrim.adapters.soka import chosen_rank

    spectrum = torch.tensor([3.0, 2.0, 0.8, 0.001]).double()
    assert chosen_rank(spectrum, ADAPTERS.options("soka", {"energy": energy})) == expected


@shapes
def test_effort_holds_the_update_apart_from_what_is_kept(shape):
    weight = matrix(shape)
    made = Case("effort", weight, r=4, size=0.01)
    kept_left, kept_right = made.parts.fixed["kept_left"], made.parts.fixed["kept_right"]
    update = made.update()
    assert (kept_left.T @ update).abs().max() < 1e-12
    assert (update @ kept_right.T).abs().max() < 1e-12
    kept = kept_left.shape[1]
    before, after = (torch.linalg.svdvals(w)[:kept] for w in (weight, weight + update))
    torch.testing.assert_close(before, after)
    free = Case("effort", weight, r=4, project=False)
    assert (kept_left.T @ free.update()).abs().max() > 1e-2


def test_effort_is_kept_by_adam_where_projected_gradients_leak():
    """The guarantee holds after steps whose coordinates are scaled one by one."""
    weight, target = matrix((12, 12)), matrix((12, 12), 7)

    def leak(project_gradient: bool) -> float:
        made = Case("effort", weight, r=4, size=0.0, project=not project_gradient)
        values = {n: t.clone().requires_grad_(True) for n, t in made.parts.trained.items()}
        kept_left, kept_right = made.parts.fixed["kept_left"], made.parts.fixed["kept_right"]
        optimizer = torch.optim.Adam(values.values(), lr=1e-2)
        for _ in range(50):
            optimizer.zero_grad()
            (weight + made.update(**values) - target).square().sum().backward()
            if project_gradient:
                left, right = values["left_change"].grad, values["right_change"].grad
                left -= kept_left @ (kept_left.T @ left)
                right -= right @ kept_right.T @ kept_right
            optimizer.step()
        with torch.no_grad():
            update = made.update(**values)
        return float((kept_left.T @ update).norm() / update.norm())

    assert leak(project_gradient=True) > 0.1
    assert leak(project_gradient=False) < 1e-12


@shapes
def test_effort_penalty_is_the_published_loss(shape):
    weight = matrix(shape)
    made = Case("effort", weight, r=3, project=False)
    tensors = made.tensors
    assert (
        float(made.method.penalty(made.parts.fixed | made.parts.trained, made.options)) < 1e-10
    )
    left = torch.cat([tensors["kept_left"], tensors["left"] + tensors["left_change"]], 1)
    right = torch.cat([tensors["kept_right"], tensors["right"] + tensors["right_change"]])
    identity = torch.eye(left.shape[1]).double()
    expected = (
        0.5 * (left.T @ left - identity).norm() + 0.5 * (right @ right.T - identity).norm()
    )
    changed = weight + made.update()
    expected += (changed.square().sum() - weight.square().sum()).abs()
    assert float(made.method.penalty(tensors, made.options)) == pytest.approx(float(expected))


def test_penalties_are_those_of_all_layers():
    model = moved(adapted("salt"))
    layers = [layer for _, layer in spectral_layers(model)]
    mean = sum(float(layer.penalty("default")) for layer in layers) / len(layers)
    assert float(penalty(model)) == pytest.approx(mean, rel=1e-5)
    with pytest.raises(InputError, match="effort, salt"):
        penalty(adapted("pissa"))
    with pytest.raises(InputError, match="effort, salt"):
        PiSSAConfig(penalty=1.0)


def test_obd_orders_terms_by_predicted_loss():
    """The terms rebuild W; the first r are the best of rank r in the metric, not in norm."""
    base = TINY_MODELS["llama"]()
    made = config("obd", base)
    name = "model.layers.0.mlp.down_proj"
    weight = base.get_submodule(name).weight.detach().double()
    statistics = made.statistics.layer(name)
    found = AdaptedWeight(name, weight, statistics).directions("obd")
    torch.testing.assert_close(found.left * found.spectrum @ found.right, weight)
    torch.testing.assert_close(found.left.norm(dim=0), torch.ones(32).double())
    inside, outside = statistics["input_covariance"], statistics["gradient_covariance"]

    def loss(kept: Tensor) -> float:
        gone = weight - kept
        return float((outside * (gone @ inside @ gone.T)).sum())

    plain = AdaptedWeight(name, weight).directions()
    for rank in (4, 16):
        kept = [
            d.first(rank).left * d.first(rank).spectrum @ d.first(rank).right
            for d in (found, plain)
        ]
        assert loss(kept[0]) < loss(kept[1])


def test_obd_without_statistics_says_what_to_do():
    from spectrim.adapters import OBDConfig

    with pytest.raises(InputError, match="with_statistics"):
        peft.get_peft_model(TINY_MODELS["llama"](), OBDConfig())


def test_a_name_that_peft_has_is_not_taken(monkeypatch):
    from peft import mapping

    from spectrim.adapters import _tuner

    monkeypatch.setattr(mapping, "PEFT_TYPE_TO_TUNER_MAPPING", {"SALT": object})
    with pytest.raises(InputError, match="has a method 'SALT' already"):
        _tuner.register.__wrapped__()
