"""Options of quantizers by layer: exact prices, and the best plan of all within the budget."""

from __future__ import annotations

import itertools

import pytest
import torch

from spectrim.errors import InputError
from spectrim.layers.quantized import QUANTIZERS
from spectrim.layers.quantized.mixed import Options
from spectrim.planning.quantizer_choices import PricedOptions, choose_options, price_options
from spectrim.statistics import LayerProblem
from tests.layer_problems import LAYER, random_layer, random_tokens, statistics_of
from tests.tolerances import FLOAT64_RELATIVE, LOSS_RELATIVE

NEEDED = ("gradient_covariance", "input_covariance")


def problem() -> LayerProblem:
    weight, _ = random_layer((12, 20))
    tokens = random_tokens(weight, None, 64)
    return LayerProblem(LAYER, weight.float(), None, statistics_of(tokens, (12, 20), NEEDED))


def priced() -> dict[str, list[PricedOptions]]:
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, size in {"a": 40, "b": 100, "c": 70}.items():
        losses = torch.rand(5, generator=generator).sort(descending=True).values.tolist()
        choices = zip((2, 3, 4, 6, 8), losses, strict=True)
        found[name] = [PricedOptions(bits, bits * size, loss) for bits, loss in choices]
    return found


@pytest.mark.parametrize("budget", [420, 500, 641, 900, 1200, 5000])
def test_the_best_plan_of_all(budget):
    chosen = choose_options(priced(), budget).values()
    assert sum(choice.bytes for choice in chosen) <= budget
    loss = sum(choice.loss for choice in chosen)
    for plan in itertools.product(*priced().values()):
        if sum(choice.bytes for choice in plan) <= budget:
            assert loss <= sum(choice.loss for choice in plan) + LOSS_RELATIVE


def test_a_budget_below_the_cheapest():
    with pytest.raises(InputError, match="take 420 at the cheapest"):
        choose_options(priced(), 419)


@pytest.mark.parametrize("name", ["rtn", "mixed"])
def test_prices_are_bytes_and_nats_of_what_is_stored(name):
    given = problem()
    values = [{"bits": bits, "group": 8} for bits in (4, 2)]
    choices = [QUANTIZERS.options(name, each) for each in values]
    found = price_options(given, name, choices, 2)
    assert [choice.options for choice in found] == choices[::-1]
    whole = torch.kron(*(given.statistic(each) for each in NEEDED))
    for choice in found:
        layer = QUANTIZERS.get(name).compress(given, choice.options)
        held = sum(t.numel() * t.element_size() for t in layer.state_dict().values())
        error = (given.weight.double() - layer.dense()[0]).flatten()
        expected = float(0.5 * given.statistics.share * (error @ whole @ error))
        assert choice.bytes == held
        assert abs(choice.loss - expected) <= FLOAT64_RELATIVE * expected


def test_options_are_priced_in_the_order_of_bytes():
    choices = [Options(bits=b, density=d) for b in (4, 2, 3) for d in (0.0, 0.02)]
    found = price_options(problem(), "mixed", choices, 2)
    assert [c.bytes for c in found] == sorted(c.bytes for c in found)
