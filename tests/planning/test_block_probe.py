"""Second-order divergence from a block's output, and what measuring costs."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from spectrim.linalg.truncated import Factors
from spectrim.models.hooks import attach_hooks
from spectrim.models.linear import get_bias, set_weight
from spectrim.models.targets import decoder_blocks, find_targets
from spectrim.planning.block_probe import BlockProbe
from spectrim.planning.probe import Probe
from spectrim.planning.probe_tokens import (
    ENOUGH,
    MOST_LAYER_TOKENS,
    PassCosts,
    ProbeTokens,
    first_tokens,
)
from tests.planning.test_probe import (
    RANK,
    factors_of,
    naive_divergence,
    one_layer_per_block,
    prepared,
    token_rows,
)
from tests.tiny_models import TINY_MODELS
from tests.tolerances import DIVERGENCE_ABSOLUTE, LOSS_RELATIVE, SECOND_ORDER_RELATIVE

SEED = 3


def near(factors: Factors, share: float) -> Factors:
    """Of full rank, cut to one that is `share` of the way from the weight to rank `RANK`."""
    left, right = factors.left.clone(), factors.right.clone()
    left[:, RANK:] *= share
    return Factors(left, right, factors.spectrum)


def naive_second_order(model: nn.Module, rows, layer: str, factors: Factors, rank: int):
    """1/2 mean (g . e)^2 row by row in float64, whole models, gradients by autograd."""
    twin = copy.deepcopy(model).double()
    smaller = copy.deepcopy(twin)
    module = smaller.get_submodule(layer)
    bias = factors.bias(rank, get_bias(module))
    set_weight(module, factors.weight(rank))
    module.bias = None if bias is None else nn.Parameter(bias)
    [number] = [i for i, (n, _) in enumerate(decoder_blocks(twin)) if layer.startswith(n + ".")]
    total, count = 0.0, 0
    for row in range(len(rows.ids)):
        ids = rows.ids[[row]]
        mask = None if rows.mask is None else rows.mask[[row]]
        logits, hidden = run(twin, ids, mask, number)
        _, changed = run(smaller, ids, mask, number)
        generator = torch.Generator().manual_seed(SEED + row)
        flat = logits[0, :-1]
        labels = torch.multinomial(flat.detach().softmax(-1), 1, generator=generator)
        scored = torch.ones(len(flat), dtype=torch.bool) if mask is None else mask[0, :-1]
        loss = nn.functional.cross_entropy(flat[scored], labels[scored, 0], reduction="sum")
        [gradient] = torch.autograd.grad(loss, hidden)
        total += float(((gradient * (changed - hidden)).sum(-1) ** 2).sum().detach())
        count += int(scored.sum())
    return total / count / 2


def run(model: nn.Module, ids: Tensor, mask: Tensor | None, number: int):
    seen = []

    def keep(module, args, output):
        seen.append(output[0] if isinstance(output, tuple) else output)

    handle = decoder_blocks(model)[number][1].register_forward_hook(keep)
    attention = None if mask is None else mask.long()
    logits = model(input_ids=ids, attention_mask=attention, use_cache=False).logits
    handle.remove()
    return logits, seen[0]


@pytest.mark.few(3)
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("name", TINY_MODELS)
def test_it_is_the_second_order_loss_of_whole_models(name, padded):
    model, rows = prepared(name).double(), token_rows(padded)
    probe = BlockProbe(model, rows, 10_000, seed=SEED)
    for layer in one_layer_per_block(model):
        factors = factors_of(model.get_submodule(layer), offset=True)
        expected = naive_second_order(model, rows, layer, factors, RANK)
        found = probe.divergence({layer: factors}, {layer: RANK})
        assert found == pytest.approx(expected, rel=LOSS_RELATIVE), layer


@pytest.mark.slow
def test_small_cuts_cost_what_the_whole_model_says():
    """Averaged over many drawn labels, where nothing is left but the second order."""
    model, rows = prepared("llama").double(), token_rows(False)
    layer = one_layer_per_block(model)[-1]
    module = model.get_submodule(layer)
    weight = near(factors_of(module), 0.98)
    full = weight.max_rank
    probes = [BlockProbe(model, rows, 10_000, seed=100 * n) for n in range(300)]
    found = sum(p.divergence({layer: weight}, {layer: full}) for p in probes) / len(probes)
    exact = Probe(model, rows, 10_000).divergence({layer: weight}, {layer: full})
    assert found == pytest.approx(exact, rel=SECOND_ORDER_RELATIVE)


def test_layers_of_two_blocks_are_followed_to_the_last():
    model, rows = prepared("llama").double(), token_rows(False)
    first, *_, last = one_layer_per_block(model)
    factors = {layer: factors_of(model.get_submodule(layer)) for layer in (first, last)}
    probe = BlockProbe(model, rows, 10_000)
    both = probe.divergence(factors, dict.fromkeys(factors, RANK))
    alone = [probe.divergence(factors, {layer: RANK}) for layer in factors]
    assert both > 0
    assert both not in alone


@pytest.mark.parametrize("name", ["llama", "gpt2", "tied", "moe"])
def test_a_layer_costs_its_own_block_alone(name):
    model, rows = prepared(name), token_rows(False)
    probe = BlockProbe(model, rows, 10_000)
    layer = one_layer_per_block(model)[-1]
    factors = {layer: factors_of(model.get_submodule(layer))}
    probe.divergence(factors, {layer: RANK})  # which tries to replay the others' outputs once
    runs = dict.fromkeys((name for name, _ in decoder_blocks(model)), 0)

    def count(block: str):
        def add(*_: object) -> None:
            runs[block] += 1

        return add

    inside = [(next(block.children()), count(name)) for name, block in decoder_blocks(model)]
    with attach_hooks(after=inside):
        probe.divergence(factors, {layer: RANK})
    *earlier, last = runs.values()
    assert last == len(rows.ids)
    assert not any(earlier)


def test_a_layer_outside_the_blocks_runs_through_the_model():
    model, rows = prepared("gpt2"), token_rows(False)
    factors = {"lm_head": factors_of(model.lm_head)}
    found = BlockProbe(model, rows, 10_000).divergence(factors, {"lm_head": RANK})
    exact = Probe(model, rows, 10_000).divergence(factors, {"lm_head": RANK})
    assert found == pytest.approx(exact, abs=DIVERGENCE_ABSOLUTE)


@pytest.mark.parametrize("name", TINY_MODELS)
def test_the_model_is_restored(name):
    model = prepared(name)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    probe = BlockProbe(model, token_rows(True), 10_000)
    layer = one_layer_per_block(model)[0]
    factors = {layer: factors_of(model.get_submodule(layer), offset=True)}
    probe.divergence(factors, {layer: RANK})
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["llama", "gpt2", "tied", "moe"])
def test_the_prefix_kept_by_a_probe_changes_nothing(name):
    """In float64: from stored outputs against the whole model run again."""
    model, rows = prepared(name).double(), token_rows(True)
    probe = Probe(model, rows, tokens=10_000)
    for layer in one_layer_per_block(model):
        factors = {layer: factors_of(model.get_submodule(layer))}
        expected = naive_divergence(model, rows, factors)
        found = probe.divergence(factors, {layer: RANK})
        assert found == pytest.approx(expected, rel=LOSS_RELATIVE), layer


def deep(count: int, head: float = 0.1) -> tuple[PassCosts, dict[tuple[str, ...], int]]:
    """A model of `count` blocks with seven layers each, measured at two ranks."""
    costs = PassCosts({f"b.{i}": (1 - head) / count for i in range(count)}, head)
    return costs, {(f"b.{i}.{layer}",): 2 for i in range(count) for layer in range(7)}


def spent(tokens: ProbeTokens, costs: PassCosts, measured, plans: int) -> float:
    """Passes, counted one by one."""
    total = tokens.joint * (1 + plans)
    total += tokens.layers * (1 if tokens.through == "model" else 2)
    for modules, ranks in measured.items():
        through_block = tokens.layers * costs.own(modules)
        whole = ranks * tokens.layers * costs.rest(modules)
        total += whole if tokens.through == "model" else through_block
    return total


@pytest.mark.few(15)
@pytest.mark.parametrize("count", [1, 2, 6, 30, 80, 400])
@pytest.mark.parametrize("calibrated", [2**14, 2**16, 2**19])
@pytest.mark.parametrize("through", ["auto", "model", "block"])
def test_measuring_costs_at_most_half_of_the_calibration(count, calibrated, through):
    costs, measured = deep(count)
    budget = 0.5 * 2 * calibrated
    tokens = ProbeTokens.within(budget, costs, measured, 4, through)
    assert spent(tokens, costs, measured, 4) <= budget
    assert tokens.layers >= 2
    assert tokens.joint >= 2


def test_deep_models_are_measured_on_as_many_tokens_as_shallow_ones():
    tokens = {n: ProbeTokens.within(2**16, *deep(n), 4) for n in (6, 30, 80, 400)}
    assert tokens[6].through == "model"
    assert tokens[6].layers >= ENOUGH
    assert all(tokens[n].through == "block" for n in (30, 80, 400))
    assert all(tokens[n].layers == MOST_LAYER_TOKENS for n in (30, 80, 400))


def test_parts_of_a_pass():
    model = TINY_MODELS["llama"]()
    costs = PassCosts.of(model)
    weights = sum(target.weights for target in find_targets(model))
    head = model.lm_head.weight.numel()
    assert costs.head == pytest.approx(head / (head + weights))
    assert costs.rest(["model.layers.0.mlp.up_proj"]) == pytest.approx(1)
    assert costs.rest(["model.layers.1.mlp.up_proj"]) == pytest.approx(
        costs.head + costs.blocks["model.layers.1"]
    )
    assert costs.own(["lm_head"]) == costs.rest(["lm_head"]) == 1


def test_rows_are_cut_to_the_tokens_that_are_paid_for():
    rows = token_rows(True)
    shapes = {n: tuple(first_tokens(rows, n).ids.shape) for n in (2, 7, 10, 15, 24, 1000)}
    assert shapes == {2: (1, 2), 7: (1, 7), 10: (1, 10), 15: (2, 7), 24: (3, 8), 1000: (3, 10)}
    cut = first_tokens(rows, 15)
    assert torch.equal(cut.ids, rows.ids[:2, :7])
    assert torch.equal(cut.mask, rows.mask[:2, :7])
