"""Sequential objectives: every layer is the optimum for what the final model gives it."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from spectrim.calibration.in_memory import CalibrationSettings, calibrate
from spectrim.data import TokenBlocks
from spectrim.decompositions import DECOMPOSITIONS, decompose_layer
from spectrim.errors import InputError, ModelError, NumericalWarning
from spectrim.layers import FactoredLinear, layer_class
from spectrim.linalg.metric import CovarianceMetric, IdentityMetric
from spectrim.linalg.regression import regression, weighted_square
from spectrim.linalg.truncated import weighted_svd
from spectrim.models.experts import split_expert_names
from spectrim.models.linear import get_bias, get_weight
from spectrim.models.replace import factored_layers, replace_layer
from spectrim.models.targets import Target, find_targets
from spectrim.refinement import REFINEMENTS, TrainingInputs
from spectrim.refinement._sequential.layer_inputs import Input, Sums, record_inputs, stages
from spectrim.runtime import snapshots
from spectrim.runtime.cache import Cache
from spectrim.runtime.context import RunContext
from spectrim.statistics import LayerProblem
from tests.checkpoint.compressing import replace_by_svd
from tests.contracts.test_refinements import Stop, case, same, state, tokens
from tests.tiny_models import TINY_MODELS
from tests.tolerances import OBJECTIVE_RELATIVE, SEQUENTIAL_RELATIVE

NAMES = ("aa_svd", "saes_svd", "svd_llm_update")
DAMPING = 1e-3
names = pytest.mark.parametrize("name", NAMES)


def rewritten(given, name: str, blocks: TokenBlocks | None = None, **options) -> None:
    chosen = REFINEMENTS.options(name, {"out_metric": "identity"} | options)
    inputs = TrainingInputs(given.original, given.compressed, blocks or tokens())
    REFINEMENTS.get(name).refine(inputs, chosen, RunContext())


def inputs_of(model: PreTrainedModel, names: list[str]) -> dict[str, Tensor]:
    """Each layer's inputs (tokens, in) in one run of the whole model, float64."""
    blocks = tokens()
    found = {}
    for name in names:  # one by one: a run ends once all have been given theirs
        given = record_inputs(model, [name], lambda: model(blocks.ids))
        found[name] = given[name].x.double()
    return found


def near(first: Tensor, second: Tensor) -> bool:
    return float((first - second).norm()) < SEQUENTIAL_RELATIVE * float(second.norm())


def optimal(layer: FactoredLinear, product: Tensor, metric: CovarianceMetric) -> bool:
    """No larger an error than the tail of the target's spectrum; weights may differ where
    singular values are close."""
    plain, target = IdentityMetric(), regression(product, metric)
    tail = weighted_svd(target, plain, metric).spectrum[layer.rank :].square().sum()
    away = target - layer.dense()[0]
    return weighted_square(away, plain, metric) < float(tail) * (1 + OBJECTIVE_RELATIVE)


@pytest.mark.few(2)
@pytest.mark.parametrize("model", TINY_MODELS)
def test_shifted_is_optimal_for_the_inputs_of_the_final_model(model):
    given = case(model)
    rewritten(given, "svd_llm_update")
    layers = dict(factored_layers(given.compressed))
    targets = [Target(n, (m.out_features, m.in_features)) for n, m in layers.items()]
    settings = CalibrationSettings(("input_covariance",))
    found = calibrate(given.compressed, targets, tokens(), settings)
    checked = 0
    for name, layer in layers.items():
        if found.counts[name] < layer.in_features:
            continue
        metric = CovarianceMetric(found.layer(name)["input_covariance"], DAMPING)
        weight = get_weight(given.original.get_submodule(name)).detach().double()
        assert optimal(layer, weight @ metric.covariance, metric), name
        checked += 1
    assert checked >= len(layers) // 2


@pytest.mark.few(2)
@pytest.mark.parametrize("model", ["llama", "gqa", "tied", "qwen2_bias", "gpt2"])
@torch.no_grad()
def test_anchored_is_optimal_for_both_models_inputs(model):
    given, mix = case(model), 0.6
    rewritten(given, "aa_svd", original_input_weight=mix)
    layers = dict(factored_layers(given.compressed))
    own, first = (inputs_of(m, list(layers)) for m in (given.compressed, given.original))
    for name, layer in layers.items():
        x, y = own[name], first[name]
        metric = CovarianceMetric(x.T @ x / len(x), DAMPING)
        weight = get_weight(given.original.get_submodule(name)).detach().double()
        product = weight @ (metric.covariance + mix * (y - x).T @ x / len(x))
        assert optimal(layer, product, metric), name


def one_layer(rank: int = 6, kind: str = "pivoted"):
    """A model whose first q_proj alone is factored: its prefix is the original."""
    given = case("llama")
    given.compressed = copy.deepcopy(given.original)
    name = find_targets(given.original)[0].name
    replace_by_svd(given.compressed, name, kind, rank)
    return given, name


@pytest.mark.parametrize(("method", "metric"), [("obd", "gradient"), ("svd_llm", "identity")])
@pytest.mark.parametrize(
    "refinement",
    [("svd_llm_update", {}), ("aa_svd", {"original_input_weight": 1.0}), ("saes_svd", {})],
)
def test_on_the_originals_own_inputs_it_is_the_decomposition(method, metric, refinement):
    given, name = one_layer()
    targets = find_targets(given.original)
    settings = CalibrationSettings(("input_covariance", "gradient_covariance"))
    found = calibrate(given.original, targets, tokens(), settings)
    dense = given.original.get_submodule(name)
    problem = LayerProblem(name, get_weight(dense).detach(), get_bias(dense), found.layer(name))
    options = DECOMPOSITIONS.options(method, {"damping": DAMPING})
    expected = decompose_layer(method, problem, options).weight(6)
    own, changes = refinement
    chosen = REFINEMENTS.options(own, {"out_metric": metric, "damping": DAMPING} | changes)
    inputs = TrainingInputs(given.original, given.compressed, tokens(), found)
    REFINEMENTS.get(own).refine(inputs, chosen, RunContext())
    assert near(given.compressed.get_submodule(name).dense()[0], expected)
    # once there, again changes nothing
    before = given.compressed.get_submodule(name).dense()[0]
    REFINEMENTS.get(own).refine(inputs, chosen, RunContext())
    assert near(given.compressed.get_submodule(name).dense()[0], before)


@names
def test_full_rank_stays_the_original(name):
    given = case("llama")
    given.compressed = copy.deepcopy(given.original)
    for target in find_targets(given.original):
        replace_by_svd(given.compressed, target.name, "lowrank", min(target.shape))
    options = {"original_input_weight": 1.0} if name == "aa_svd" else {}
    rewritten(given, name, **options)
    with torch.no_grad():
        ids = tokens().ids
        assert near(given.compressed(ids).logits, given.original(ids).logits)


@names
def test_a_model_without_factors_is_refused(name):
    given = case("llama")
    given.compressed = copy.deepcopy(given.original)
    with pytest.raises(ModelError, match="compress it"):
        rewritten(given, name)


@names
def test_gradients_are_asked_for(name):
    with pytest.raises(InputError, match="out_metric"):
        rewritten(case("llama"), name, out_metric="gradient")


@names
def test_too_few_tokens_keep_the_factors(name):
    given, blocks = case("llama"), tokens()
    before = state(given.compressed)
    few = replace(blocks, ids=blocks.ids[:2, :8].contiguous())
    options = {"original_input_weight": 0.5} if name == "aa_svd" else {}
    with pytest.warns(NumericalWarning, match="keep their factors"):
        rewritten(given, name, few, **options)
    assert same(state(given.compressed), before)


def test_layers_outside_the_blocks_are_rewritten():
    given = case("llama")
    replace_by_svd(given.compressed, "lm_head", "lowrank", 8)
    before = given.compressed.lm_head.dense()[0]
    rewritten(given, "aa_svd", original_input_weight=0.5)
    assert not torch.equal(given.compressed.lm_head.dense()[0], before)


def test_a_model_without_blocks_is_rewritten():
    given, other = case("llama"), case("llama")
    for module in (*given.compressed.modules(), *given.original.modules()):
        module._no_split_modules = None
    for one in (given, other):
        rewritten(one, "aa_svd", original_input_weight=0.5)
    pairs = zip(
        factored_layers(given.compressed), factored_layers(other.compressed), strict=True
    )
    assert all(near(one.dense()[0], two.dense()[0]) for (_, one), (_, two) in pairs)


def test_a_layers_own_bias_comes_back():
    given = case("llama")
    name = find_targets(given.original)[0].name
    layer = given.compressed.get_submodule(name)
    weight, _ = layer.dense()
    u, s, v = torch.linalg.svd(weight)
    biased = layer_class("lowrank").from_factors(u[:, :6] * s[:6], v[:6], torch.ones(len(u)))
    replace_layer(given.compressed, name, biased)
    rewritten(given, "svd_llm_update")
    found = given.compressed.get_submodule(name)
    assert found.rank == 6
    assert not found.dense()[1].any()


@pytest.mark.parametrize("model", TINY_MODELS)
def test_stages_are_in_order_and_experts_together(model):
    given = case(model)
    layers = [name for name, _ in factored_layers(given.compressed)]
    blocks = tokens()
    with torch.no_grad():
        found = stages(given.compressed, layers, lambda: given.compressed(blocks.ids[:1]))
    assert sorted(
        n for stage in found for readers in stage.values() for n in readers
    ) == sorted(layers)
    experts = split_expert_names(given.compressed)
    per_block = len(found) / 2
    assert per_block == 4
    if model == "llama":
        first = [
            {n.rpartition(".")[2] for r in stage.values() for n in r} for stage in found[:4]
        ]
        assert first == [
            {"q_proj", "k_proj", "v_proj"},
            {"o_proj"},
            {"gate_proj", "up_proj"},
            {"down_proj"},
        ]
    for name in experts:
        lists = [s for s in found if any(n.startswith(name + ".up.") for n in s)]
        assert len(lists) == 1
        assert all(n.startswith(name + ".up.") for n in lists[0])


def test_tokens_of_an_expert_are_paired_by_their_place():
    own = Input(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([0, 4, 7]))
    other = Input(torch.tensor([[10.0], [20.0]]), torch.tensor([4, 9]))
    sums = Sums()
    sums.add(own, other)
    assert sums.count == 3
    assert sums.covariance.tolist() == [[14.0]]
    assert sums.shift.tolist() == [[(10.0 - 2.0) * 2.0]]
    real = torch.ones(10, dtype=torch.bool)
    real[4] = False
    assert own.real(real).rows.tolist() == [0, 7]


@pytest.mark.few(1)
@names
def test_the_joint_divergence_falls(name):
    given = case("llama")
    ids = tokens().ids

    def away() -> float:
        with torch.no_grad():
            wanted = given.original(ids).logits
            return float((given.compressed(ids).logits - wanted).norm())

    before = away()
    rewritten(given, name)
    assert away() < before


def test_the_search_takes_the_best_candidate():
    given = case("llama")
    search = REFINEMENTS.options("aa_svd", {"out_metric": "identity", "search_share": 1.0})
    inputs = TrainingInputs(given.original, given.compressed, tokens())
    losses = REFINEMENTS.get("aa_svd").refine(inputs, search, RunContext())
    figures = {mix: losses[f"KL with mix {mix:g}"][0] for mix in search.candidates}
    assert len(set(figures.values())) == len(figures)
    best = min(figures, key=figures.__getitem__)
    other = case("llama")
    rewritten(other, "aa_svd", original_input_weight=best)
    assert same(state(given.compressed), state(other.compressed))


@pytest.mark.few(1)
@pytest.mark.parametrize("steps", [3, 20, 60])
def test_a_stopped_search_ends_the_same(steps, tmp_path, monkeypatch):
    monkeypatch.setattr(snapshots, "SECONDS_BETWEEN_SAVES", 0.0)
    options = REFINEMENTS.options("aa_svd", {"out_metric": "identity"})
    run = REFINEMENTS.get("aa_svd").refine
    whole, stopped = case("llama"), case("llama")
    before = state(stopped.compressed)
    inputs, again = (
        TrainingInputs(c.original, c.compressed, tokens()) for c in (whole, stopped)
    )
    expected = run(inputs, options, RunContext())
    with pytest.raises(KeyboardInterrupt):
        run(again, options, RunContext(Cache(tmp_path), Stop(steps)))
    assert same(state(stopped.compressed), before)
    resumed = run(again, options, RunContext(Cache(tmp_path)))
    assert same(state(stopped.compressed), state(whole.compressed))
    assert resumed == expected


def test_a_search_needs_two_sequences():
    blocks = tokens()
    one = replace(blocks, ids=blocks.ids[:1])
    with pytest.raises(InputError, match="two or more"):
        rewritten(case("llama"), "aa_svd", one)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("aa_svd", {"original_input_weight": 1.5}),
        ("aa_svd", {"candidates": (0.0, 2.0)}),
        ("aa_svd", {"search_share": 0.0}),
        ("saes_svd", {"alpha_low": 0.9}),
        ("svd_llm_update", {"batch_size": 0}),
        ("svd_llm_update", {"out_metric": "other"}),
    ],
)
def test_wrong_options_are_named(name, wrong):
    with pytest.raises(InputError, match=next(iter(wrong)).partition("_")[0]):
        REFINEMENTS.options(name, wrong)


def test_saes_takes_its_betas_from_alpha():
    options = REFINEMENTS.options("saes_svd", {})
    assert options.betas == pytest.approx((0.2, 3 / 7))
