"""Text in, checkpoint out: every tiny model, both layer kinds, to the last bit."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import spectrim
from spectrim.checkpoint import load
from spectrim.errors import NumericalWarning
from spectrim.layers import LAYERS, layer_class
from spectrim.models.linear import set_weight
from spectrim.models.replace import factored_layers
from spectrim.pipeline.evaluate import evaluate
from spectrim.pipeline.inputs import prepare
from spectrim.pipeline.plan import factorize, plan
from spectrim.pipeline.replace import replace_layers
from spectrim.planning import Decomposition, Plan, make_plan
from tests.checkpoint.test_fresh_process import run
from tests.layer_problems import stored_weights
from tests.runs import small_recipe, text_file
from tests.tiny_models import TINY_MODELS, tiny_moe, tiny_tokenizer, tiny_tokens
from tests.tolerances import PRODUCT_ABSOLUTE

KINDS = LAYERS.names()
CASES = [(model, kind) for model in TINY_MODELS for kind in KINDS]


@dataclass(frozen=True)
class Done:
    directory: Path
    decomposition: Decomposition
    plan: Plan
    logits: Tensor


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> dict[tuple[str, str], Done]:
    """Every tiny model compressed with every kind and saved."""
    root = tmp_path_factory.mktemp("done")
    text = text_file(root / "text.txt")
    found = {}
    for name, build in TINY_MODELS.items():
        model = build()
        decomposition = factorize(model, tiny_tokenizer(), small_recipe(text))
        for kind in KINDS:
            settings = replace(small_recipe(text).planning, layer=kind)
            chosen = make_plan(decomposition, settings)
            smaller = replace_layers(model, decomposition, chosen)
            directory = root / f"{name}-{kind}"
            spectrim.save(smaller, tiny_tokenizer(), str(directory))
            found[name, kind] = Done(directory, decomposition, chosen, logits(smaller))
    return found


@torch.no_grad()
def logits(model) -> Tensor:
    return model(tiny_tokens()).logits


@pytest.mark.few(7)
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_loaded_logits_are_those_in_memory(done, case):
    model, tokenizer = load(done[case].directory)
    assert torch.equal(logits(model), done[case].logits)
    assert model.dtype == torch.float32
    assert tokenizer("abc")["input_ids"] == tiny_tokenizer()("abc")["input_ids"]


@pytest.mark.few(12)
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_loaded_model_computes_what_the_plan_says(done, case):
    """Against a dense twin whose weights are the products of the factors in float64, or
    what their kind makes of them."""
    twin = TINY_MODELS[case[0]]()
    prepare(twin, spectrim.Recipe())
    kind, options = layer_class(case[1]), LAYERS.options(case[1])
    for layer, rank in done[case].plan.ranks.items():
        factors = done[case].decomposition.factors[layer]
        weight = factors.weight(rank)
        if not kind.LOSSLESS:
            weight, _ = kind.from_full(factors, rank, None, options).dense()
        set_weight(twin.get_submodule(layer), weight)
    assert torch.allclose(logits(twin), done[case].logits, rtol=0, atol=PRODUCT_ABSOLUTE)


@pytest.mark.few(15)
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_config_ranks_and_budget(done, case):
    _, kind = case
    config = json.loads((done[case].directory / "config.json").read_text())
    entry = config["quantization_config"]
    ranks = done[case].plan.ranks
    assert entry["quant_method"] == "spectrim"
    assert entry["layers"] == {n: {"kind": kind, "rank": r} for n, r in ranks.items()}
    assert entry["untied"] is False
    stored = entry["provenance"]["plan"]
    assert (stored["method"], stored["layer"], stored["budget"]) == ("obd", kind, 0.6)
    assert stored["provenance"]["data"]["fingerprint"]
    assert set(stored["provenance"]["versions"]) == {"spectrim", "torch", "transformers"}
    kept, dense = 0, 0
    model, _ = load(done[case].directory)
    factored = dict(factored_layers(model))
    assert set(factored) == set(ranks)
    for name, (out, inner) in done[case].decomposition.shapes.items():
        dense += out * inner
        if name not in factored:
            kept += out * inner
            continue
        assert factored[name].rank == ranks[name]
        kept += stored_weights(factored[name])
    assert kept / dense == pytest.approx(done[case].plan.kept)
    assert 0.55 < kept / dense <= 0.6


@pytest.mark.slow
def test_fresh_process_gives_the_same_logits(done, tmp_path):
    found = run(tmp_path, "import spectrim\n", [case.directory for case in done.values()])
    for case in done.values():
        assert torch.equal(found[str(case.directory)], case.logits)


@pytest.mark.parametrize("model", ["moe", "mixtral"])
def test_every_expert_is_compressed(done, model):
    names = set(done[model, "pivoted"].plan.layers)
    experts = {
        f"model.layers.{block}.mlp.experts.{side}.{number}"
        for block in range(2)
        for side in ("up", "down")
        for number in range(4)
    }
    assert experts <= names
    config = json.loads((done[model, "pivoted"].directory / "config.json").read_text())
    entry = config["quantization_config"]
    assert entry["split_experts"] == [f"model.layers.{block}.mlp.experts" for block in range(2)]


@pytest.mark.few(2)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["tied", "gpt2"])
def test_a_tied_head_that_is_asked_for_gets_its_own_weight(tmp_path, name, kind):
    text = text_file(tmp_path / "text.txt")
    model = TINY_MODELS[name]()
    before = logits(model)
    recipe = small_recipe(text, include=("lm_head", r"0\.mlp"), allocation="uniform")
    decomposition = factorize(model, tiny_tokenizer(), recipe)
    chosen = make_plan(decomposition, replace(recipe.planning, layer=kind))
    assert "lm_head" in chosen.ranks
    smaller = replace_layers(model, decomposition, chosen)
    spectrim.save(smaller, tiny_tokenizer(), str(tmp_path / "out"))
    loaded, _ = load(tmp_path / "out")
    assert torch.equal(logits(loaded), logits(smaller))
    embedding = model.get_input_embeddings().weight
    assert torch.equal(loaded.get_input_embeddings().weight, embedding)
    entry = json.loads((tmp_path / "out" / "config.json").read_text())
    assert entry["quantization_config"]["untied"] is True
    assert entry["tie_word_embeddings"] is False
    assert model.get_output_embeddings().weight is embedding
    assert model.config.tie_word_embeddings is True
    assert torch.equal(logits(model), before)


@pytest.mark.few(2)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "case", [("llama", "pivoted"), ("moe", "lowrank"), ("gpt2", "pivoted")]
)
def test_half_precision_is_loaded_as_it_was_in_memory(done, tmp_path, case, dtype):
    model = TINY_MODELS[case[0]]()
    prepare(model, spectrim.Recipe())
    before = logits(model)
    smaller = replace_layers(model, done[case].decomposition, done[case].plan, dtype)
    spectrim.save(smaller, None, str(tmp_path / "out"))
    loaded, _ = load(tmp_path / "out")
    assert loaded.dtype == dtype
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert torch.equal(logits(loaded), logits(smaller))
    assert torch.equal(logits(model), before)
    assert model.dtype == torch.float32


def starved(model, layer: int, expert: int):
    """The router of one block never chooses one expert."""
    gate = model.model.layers[layer].mlp.gate
    original = gate.forward

    def forward(hidden):
        logits_, weights, chosen = original(hidden)
        return logits_, weights, torch.where(chosen == expert, (expert + 1) % 4, chosen)

    gate.forward = forward
    return model


@pytest.mark.few(1)
@pytest.mark.parametrize("method", ["obd", "svd", "svd_llm"])
def test_an_expert_that_no_token_reached_stays_dense_and_is_named(tmp_path, method):
    text = text_file(tmp_path / "text.txt")
    model = starved(tiny_moe(), 1, 2)
    recipe = small_recipe(text, method=method)
    with pytest.warns(NumericalWarning, match=r"layers\.1\.mlp\.experts\.up\.2"):
        decomposition = factorize(model, tiny_tokenizer(), recipe)
    chosen = plan(decomposition, recipe)
    unreached = {f"model.layers.1.mlp.experts.{side}.2" for side in ("up", "down")}
    assert not unreached & set(chosen.layers)
    assert "model.layers.1.mlp.experts.up.1" in chosen.ranks
    smaller = replace_layers(model, decomposition, chosen)
    spectrim.save(smaller, None, str(tmp_path / "out"))
    loaded, _ = load(tmp_path / "out")
    for name in unreached:
        assert torch.equal(loaded.get_submodule(name).weight, model.get_submodule(name).weight)
    assert torch.equal(logits(starved(loaded, 1, 2)), logits(smaller))


def test_the_original_is_left_as_it_was(tmp_path):
    """Weights, flags, modes and hooks; fused experts apart, which are split."""
    text = text_file(tmp_path / "text.txt")
    model = TINY_MODELS["qwen2_bias"]().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    decomposition = factorize(model, tiny_tokenizer(), small_recipe(text))
    replace_layers(model, decomposition, plan(decomposition, small_recipe(text)))
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(module.training for module in model.modules())
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    assert not any(getattr(module, kind) for module in model.modules() for kind in hooks)


def test_evaluate_sees_the_smaller_model(done, tmp_path):
    text = str(text_file(tmp_path / "text.txt", seed=1))
    dense = TINY_MODELS["llama"]()
    smaller, tokenizer = load(done["llama", "pivoted"].directory)
    figures = evaluate(smaller, tokenizer, text, reference=dense)
    assert figures["kl_divergence"] > 0
    assert figures["parameters"] < evaluate(dense, tokenizer, text)["parameters"]
