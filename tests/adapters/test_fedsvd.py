"""The server of FedSVD, and its clients' private steps."""

from __future__ import annotations

from importlib.util import find_spec

import peft
import pytest
import torch

from spectrim.adapters.fedsvd import aggregate, private_step, refactor
from spectrim.errors import InputError
from tests.adapters.building import adapted, logits, trained
from tests.adapters.test_oracles import matrix
from tests.tiny_models import tiny_tokens
from tests.tolerances import MERGED_ABSOLUTE


def test_refactoring_keeps_the_product_and_makes_the_rows_orthonormal():
    up, down = matrix((12, 4)), matrix((4, 20), 1)
    left, right = refactor(up, down)
    torch.testing.assert_close(left @ right, up @ down)
    torch.testing.assert_close(right @ right.T, torch.eye(4).double())
    gram = left.T @ left
    torch.testing.assert_close(gram, gram.diagonal().diag())
    torch.testing.assert_close(gram.diagonal().sqrt(), torch.linalg.svdvals(up @ down)[:4])


def test_products_of_smaller_rank_get_a_whole_basis_and_zero_none():
    up, down = matrix((12, 4)), matrix((4, 20), 1)
    up[:, 2:] = 0
    left, right = refactor(up, down)
    torch.testing.assert_close(left @ right, up @ down)
    torch.testing.assert_close(right @ right.T, torch.eye(4).double())
    assert torch.equal(refactor(up * 0, down)[1], down)


def client(state=None, seed: int = 0):
    torch.manual_seed(3)
    model = adapted("fedsvd", r=3)
    if state is not None:
        peft.set_peft_model_state_dict(model, state)
    optimizer = torch.optim.SGD(trained(model).values(), lr=0.5)
    ids = tiny_tokens(rows=4, length=12, seed=seed)
    for _ in range(2):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def test_the_server_averages_products_exactly():
    clients = [client(seed=seed) for seed in (1, 2)]
    states = [peft.get_peft_model_state_dict(model) for model in clients]
    merged = aggregate(states, weights=[1, 3])
    for key in [key for key in merged if key.endswith("_params.B")]:
        fixed = key.replace("_params.B", "_fixed.A")
        products = [state[key].double() @ state[fixed].double() for state in states]
        expected = 0.25 * products[0] + 0.75 * products[1]
        found = merged[key].double() @ merged[fixed].double()
        torch.testing.assert_close(found, expected, atol=1e-7, rtol=0)
    after = client(merged, seed=4)
    assert torch.isfinite(logits(after)).all()


def test_one_client_sees_the_same_model_after_the_server():
    alone = client(seed=1)
    state = aggregate([peft.get_peft_model_state_dict(alone)])
    again = adapted("fedsvd", r=3)
    peft.set_peft_model_state_dict(again, state)
    torch.testing.assert_close(logits(again), logits(alone), atol=MERGED_ABSOLUTE, rtol=0)


def test_clients_that_do_not_belong_together_are_refused():
    states = [peft.get_peft_model_state_dict(client(seed=seed)) for seed in (1, 2)]
    with pytest.raises(InputError, match="2 clients and 1 weights"):
        aggregate(states, weights=[1.0])
    other = {key: value + 1 for key, value in states[1].items()}
    with pytest.raises(InputError, match="different"):
        aggregate([states[0], other])


@pytest.mark.skipif(find_spec("opacus") is None, reason="needs the extra spectrim[privacy]")
def test_a_private_step_clips_each_example_and_adds_the_stated_noise():
    from opacus.optimizers import DPOptimizer

    model = adapted("fedsvd", r=3)
    values = list(trained(model).values())
    ids = tiny_tokens(rows=4, length=12)

    def losses():
        for row in ids:
            yield 100 * model(input_ids=row[None], labels=row[None]).loss

    def step(noise: float) -> list[torch.Tensor]:
        for value in values:
            value.data.zero_()
        optimizer = DPOptimizer(
            torch.optim.SGD(values, lr=1.0),
            noise_multiplier=noise,
            max_grad_norm=0.01,
            expected_batch_size=len(ids),
            generator=torch.Generator().manual_seed(0),
        )
        assert len(private_step(optimizer, losses)) == len(ids)
        return [value.detach().clone() for value in values]

    for value in values:
        value.data.zero_()
    expected = [torch.zeros_like(value) for value in values]
    for loss in losses():
        gradients = torch.autograd.grad(loss, values)
        norm = torch.sqrt(sum(g.square().sum() for g in gradients))
        assert norm > 0.01, "the example is one that is clipped"
        for sum_, gradient in zip(expected, gradients, strict=True):
            sum_ -= gradient * (0.01 / norm) / len(ids)
    for found, wanted in zip(step(0.0), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-3)
    noise = torch.cat(
        [a.flatten() - b.flatten() for a, b in zip(step(2.0), expected, strict=True)]
    )
    assert float(noise.std()) == pytest.approx(2.0 * 0.01 / len(ids), rel=0.05)


def test_noise_on_one_factor_is_that_of_the_formula():
    """E ||xi A||_F^2 = sigma^2 m r for an orthonormal A, by drawing."""
    down = refactor(matrix((4, 4)), matrix((4, 20), 1))[1]
    generator = torch.Generator().manual_seed(0)
    drawn = 0.3 * torch.randn(2000, 12, 4, generator=generator, dtype=torch.float64)
    mean = (drawn @ down).square().sum((1, 2)).mean()
    assert float(mean) == pytest.approx(0.3**2 * 12 * 4, rel=0.03)
