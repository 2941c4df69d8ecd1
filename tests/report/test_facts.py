"""What a page knows: taken from the plan, the curves and the tensors, and kept as JSON."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from spectrim.errors import CheckpointError, InputError
from spectrim.evaluation import kl_divergence, size
from spectrim.layers import layer_class
from spectrim.pipeline.inputs import calibration_blocks
from spectrim.pipeline.recipe import SharingRecipe
from spectrim.planning import size_curve
from spectrim.report.collect import CURVE_BUDGETS, sample_ranks
from spectrim.report.compare import NEW_TOKENS, draw_prompts, with_texts
from spectrim.report.facts import Cell, cell_of, load_facts
from tests.tiny_models import tiny_gpt2, tiny_llama, tiny_moe, tiny_tied, tiny_tokenizer

ROUNDED = 1e-3
"""Facts have four significant digits."""


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("model.layers.3.mlp.up_proj", Cell("model.layers.3", "mlp.up_proj")),
        ("transformer.h.11.attn.c_attn", Cell("transformer.h.11", "attn.c_attn")),
        ("model.layers.0.mlp.experts.up.7", Cell("model.layers.0", "mlp.experts.up")),
        ("lm_head", Cell("", "lm_head")),
        ("tower.2", Cell("tower.2", "tower")),
    ],
)
def test_a_module_has_a_place_on_the_map(name, cell):
    assert cell_of(name) == cell


def test_ranks_are_sampled_with_both_ends_and_the_kept_one():
    assert sample_ranks(5, 10, 3) == [1, 2, 3, 4, 5]
    ranks = sample_ranks(4096, 60, 1111)
    assert ranks[0] == 1
    assert ranks[-1] == 4096
    assert 1111 in ranks
    assert len(ranks) <= 61
    assert ranks == sorted(set(ranks))


def test_layers_and_curve_are_those_of_the_plan(llama):
    facts, made, _ = llama
    assert {layer.name: layer.rank for layer in facts.layers} == {
        name: layer.rank for name, layer in made.plan.layers.items()
    }
    stored = sum(layer.weights for layer in facts.layers)
    assert stored / facts.dense_weights == pytest.approx(made.plan.kept)
    expected = size_curve(made.decomposition, made.recipe.planning, CURVE_BUDGETS)
    assert [p.budget for p in facts.curve] == [p.budget for p in expected]
    losses = [p.predicted_loss for p in expected]
    assert [p.loss for p in facts.curve] == pytest.approx(losses, rel=ROUNDED)


def test_spectra_are_those_of_the_decomposition(llama):
    facts, made, _ = llama
    for layer in facts.layers:
        factors = made.decomposition.factors[layer.name]
        curve = made.decomposition.curves[layer.name]
        assert layer.ranks == list(range(1, factors.max_rank + 1))
        assert layer.spectrum == pytest.approx(factors.spectrum.tolist(), rel=ROUNDED)
        assert layer.losses == pytest.approx(curve[1:].tolist(), rel=ROUNDED)


def test_probes_are_the_measured_plans(llama):
    facts, made, _ = llama
    measured = [loss for _, loss in made.decomposition.correction.pairs]
    assert sorted(p.loss for p in facts.probes) == pytest.approx(measured, rel=ROUNDED)
    assert all(0 < p.kept <= 1 for p in facts.probes)


@pytest.mark.parametrize("model", [tiny_llama, tiny_tied, tiny_gpt2, tiny_moe])
def test_parts_are_all_the_bytes(made, model):
    dense = size.stored_bytes(model())
    facts, result, _ = made(model())
    assert sum(part.stored for part in facts.parts) == size.stored_bytes(result.model)
    assert sum(part.dense for part in facts.parts) == dense
    names = [part.name for part in facts.parts]
    assert names[-2:] == ["embedding and output head", "norms, biases and the rest"]
    assert set(names[:-2]) == {cell_of(layer.name).projection for layer in facts.layers}


def test_experts_share_a_cell_and_only_one_brings_its_spectrum(made):
    facts, _, _ = made(tiny_moe())
    shown = [cell_of(layer.name) for layer in facts.layers if layer.ranks]
    assert len(shown) == len(set(shown))
    assert set(shown) == {cell_of(layer.name) for layer in facts.layers}
    for layer in facts.layers:
        if layer.ranks:
            others = [o for o in facts.layers if cell_of(o.name) == cell_of(layer.name)]
            assert layer.loss == max(other.loss for other in others)


def test_groups_on_one_basis_are_told_by_module(made):
    sharing = SharingRecipe(rule="same_input", accept="all")
    facts, made_, _ = made(tiny_llama(), sharing=sharing, layer="lowrank")
    assert made_.plan.modules == [layer.name for layer in facts.layers]
    stored = sum(layer.weights for layer in facts.layers)
    assert stored / facts.dense_weights == pytest.approx(made_.plan.kept)
    assert "shared_basis" in {layer.kind for layer in facts.layers}
    total = sum(layer.predicted_loss for layer in made_.plan.layers.values())
    assert sum(layer.loss for layer in facts.layers) == pytest.approx(total)


def test_the_saved_model_is_measured(facts, llama):
    _, made, original = llama
    blocks = calibration_blocks(original.model, original.tokenizer, made.recipe)
    figures = kl_divergence.evaluate(
        made.model, blocks, kl_divergence.Options(), original.model
    )
    assert facts.result == pytest.approx(figures["kl_divergence"], rel=ROUNDED)
    assert facts.agreement == figures["top1_agreement"]
    assert facts.loss_increase == pytest.approx(figures["loss_increase"], rel=ROUNDED)
    assert f"{blocks.ids.numel():,} tokens" in facts.result_from


def test_texts_are_greedy_continuations(llama):
    plain, result, original = llama
    facts = with_texts(plain, original.model, result.model, original.tokenizer, ["the cat"])
    [text] = facts.texts
    ids = original.tokenizer("the cat", return_tensors="pt").input_ids
    for model, found in ((original.model, text.dense), (result.model, text.compressed)):
        expected = model.generate(ids, do_sample=False, max_new_tokens=NEW_TOKENS)
        tokens = expected[0, ids.shape[1] :]
        assert found == original.tokenizer.decode(tokens, skip_special_tokens=True)


def test_prompts_are_drawn_by_the_model_and_repeat():
    first = draw_prompts(tiny_llama(), tiny_tokenizer())
    assert first == draw_prompts(tiny_llama(), tiny_tokenizer())
    assert len(first) == 3
    assert first != draw_prompts(tiny_llama(1), tiny_tokenizer())


def test_facts_come_back_from_json(facts, tmp_path):
    path = tmp_path / "facts.json"
    path.write_text(facts.to_json())
    assert load_facts(path) == facts


def test_other_values_are_refused(facts, tmp_path):
    path = tmp_path / "facts.json"
    path.write_text("not json")
    with pytest.raises(InputError, match="cannot be read"):
        load_facts(path)
    values = json.loads(facts.to_json())
    path.write_text(json.dumps(values | {"kept": "much"}))
    with pytest.raises(CheckpointError, match="kept"):
        load_facts(path)


def test_bytes_outside_the_layers_do_not_depend_on_the_plan(facts):
    stored = sum(part.stored for part in facts.parts)
    weights = sum(layer.weights * facts.itemsize for layer in facts.layers)
    assert facts.other_bytes == pytest.approx(stored - weights)
    dense = [
        dataclasses.replace(x, rank=None, weights=math.prod(x.shape)) for x in facts.layers
    ]
    assert sum(x.weights for x in dense) == facts.dense_weights
    one = facts.layers[0]
    assert one.weights == layer_class(one.kind).cost(*one.shape, one.rank)
