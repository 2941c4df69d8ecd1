"""Encoder-decoders and classifiers through the whole trip, and what is refused of them."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

import spectrim
from spectrim.calibration.labeled import labeled_batches, whole_batch
from spectrim.checkpoint import export_dense
from spectrim.data.labeled import ClassLabels, Scores, TargetTexts
from spectrim.errors import InputError, ModelError
from spectrim.layers import CompactLinear
from spectrim.models.kind import CLASSIFIER, SEQ2SEQ, kind_of
from spectrim.pipeline.compress import CompressOptions
from spectrim.pipeline.inputs import calibration_blocks
from spectrim.pipeline.labeled import ExampleSettings, labeled_rows, labels_for
from spectrim.pipeline.recipe import (
    ElasticRecipe,
    QuantizationRecipe,
    Recipe,
    RefinementRecipe,
)
from spectrim.runtime.cache import Cache
from spectrim.runtime.context import RunContext
from tests.labeled_examples import TARGETS, examples_file, labeled_recipe
from tests.tiny_models import LABELED_MODELS, tiny_llama, tiny_tokenizer
from tests.tolerances import FULL_RANK_ABSOLUTE

LOADED = {True: "AutoModelForSeq2SeqLM", False: "AutoModelForSequenceClassification"}


@pytest.fixture(params=LABELED_MODELS)
def name(request):
    return request.param


def rows_of(model, data, count=None):
    return labeled_rows(model, tiny_tokenizer(), ExampleSettings(str(data), examples=count))


@torch.no_grad()
def logits(model, rows):
    """Row by row where the model knows no padding token."""
    batches = labeled_batches(rows, len(rows) * rows.length, 0, torch.device("cpu"))
    return torch.cat([batch.forward(model) for batch in batches])


@pytest.mark.few(1)
def test_compressed_saved_and_loaded(name, tmp_path):
    model, data = LABELED_MODELS[name](), examples_file(tmp_path / "rows.jsonl", name)
    result = spectrim.compress(model, tiny_tokenizer(), labeled_recipe(data))
    assert result.plan.kept <= 0.6
    assert result.plan.predicted_loss > 0
    assert any(isinstance(m, CompactLinear) for m in result.model.modules())
    spectrim.save(result.model, tiny_tokenizer(), str(tmp_path / "out"))
    loader = getattr(transformers, LOADED[name in TARGETS])
    loaded, info = loader.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    rows = rows_of(model, data, 6)
    assert torch.equal(logits(loaded, rows), logits(result.model, rows))
    assert not torch.equal(logits(loaded, rows), logits(model, rows))
    again, _ = spectrim.load(str(tmp_path / "out"))
    assert type(again) is type(model)
    if name in TARGETS:
        ids = rows.inputs["input_ids"][:1, :5]
        made = [m.generate(ids, max_new_tokens=4, do_sample=False) for m in (loaded, again)]
        assert torch.equal(*made)


@pytest.mark.slow
def test_the_cache_and_a_plan_give_the_same(tmp_path):
    model, data = LABELED_MODELS["t5"](), examples_file(tmp_path / "rows.jsonl", "t5")
    context, recipe = RunContext(Cache(tmp_path / "cache")), labeled_recipe(data)
    first = spectrim.compress(model, tiny_tokenizer(), recipe, context)
    entries = sorted((tmp_path / "cache").iterdir())
    second = spectrim.compress(model, tiny_tokenizer(), recipe, context)
    assert sorted((tmp_path / "cache").iterdir()) == entries
    assert second.plan.ranks == first.plan.ranks
    options = CompressOptions(plan=first.plan)
    followed = spectrim.compress(model, tiny_tokenizer(), recipe, context, options=options)
    rows = rows_of(model, data, 4)
    assert torch.equal(logits(followed.model, rows), logits(first.model, rows))
    smallest = spectrim.compress(
        model, tiny_tokenizer(), recipe, context, options=CompressOptions(target_loss=0.5)
    )
    assert smallest.plan.predicted_loss <= 0.5


@pytest.mark.slow
def test_units_are_those_of_the_loss(tmp_path):
    for name, units in (("bart", "nats per target token"), ("bert", "nats per example")):
        data = examples_file(tmp_path / "rows.jsonl", name)
        found = spectrim.factorize(
            LABELED_MODELS[name](), tiny_tokenizer(), labeled_recipe(data)
        )
        assert found.units == units


def test_what_was_predicted_is_near_what_is_measured(tmp_path):
    """The joint correction is measured on these very examples, so it holds on them."""
    model, data = LABELED_MODELS["bert"](), examples_file(tmp_path / "rows.jsonl", "bert", 200)
    recipe = labeled_recipe(data, budget=0.8)
    result = spectrim.compress(model, tiny_tokenizer(), recipe)
    given = str(data)
    figures = spectrim.evaluate(result.model, tiny_tokenizer(), given, reference=model)
    assert figures["kl_divergence"] == pytest.approx(result.plan.predicted_loss, rel=1.0)
    assert figures["examples"] == 200
    assert 0 <= figures["accuracy"] <= 1
    assert figures["loss"] == pytest.approx(
        figures["reference_loss"] + figures["loss_increase"]
    )


def test_evaluation_is_that_of_the_models_own_loss(name, tmp_path):
    model, data = LABELED_MODELS[name](), examples_file(tmp_path / "rows.jsonl", name, 9)
    figures = spectrim.evaluate(model, tiny_tokenizer(), str(data))
    batch = whole_batch(rows_of(model, data), torch.device("cpu"))
    if name == "llama":  # no padding token: the classes are read row by row
        return
    with torch.no_grad():
        output = batch.run(model)
    assert figures["loss"] == pytest.approx(float(output.loss), rel=1e-5)
    right = (output.logits.argmax(-1) == batch.labels)[batch.counted].float().mean()
    key = "token_accuracy" if name in TARGETS else "accuracy"
    assert figures[key] == pytest.approx(float(right))


@pytest.mark.slow
def test_a_quantized_classifier_is_loaded_as_it_was(tmp_path):
    data = examples_file(tmp_path / "rows.jsonl", "bert")
    model = LABELED_MODELS["bert"]()
    recipe = labeled_recipe(data, quantization=QuantizationRecipe(8, "rtn"))
    result = spectrim.compress(model, tiny_tokenizer(), recipe)
    spectrim.save(result.model, None, str(tmp_path / "out"))
    loaded = type(model).from_pretrained(tmp_path / "out")
    rows = rows_of(model, data, 4)
    assert torch.equal(logits(loaded, rows), logits(result.model, rows))


@pytest.mark.parametrize(
    "changes",
    [
        {"elastic": ElasticRecipe()},
        {"refinement": (RefinementRecipe("finetune"),)},
    ],
)
def test_steps_of_causal_models_are_refused_at_once(changes, tmp_path):
    recipe = labeled_recipe(tmp_path / "none.jsonl", **changes)
    with pytest.raises(InputError, match="and an encoder-decoder or classifier cannot be"):
        spectrim.compress(LABELED_MODELS["t5"](), tiny_tokenizer(), recipe)


def test_text_is_not_read_for_models_with_labels(tmp_path):
    with pytest.raises(ModelError, match="on examples with labels"):
        calibration_blocks(LABELED_MODELS["bert"](), tiny_tokenizer(), Recipe())


def test_kinds():
    for name, build in LABELED_MODELS.items():
        assert kind_of(build()) is (SEQ2SEQ if name in TARGETS else CLASSIFIER)
    assert not kind_of(tiny_llama()).labeled


def test_labels_by_config():
    assert isinstance(labels_for(SEQ2SEQ, {}), TargetTexts)
    assert labels_for(CLASSIFIER, {"id2label": {"0": "no", "1": "yes"}}) == ClassLabels(
        {"no": 0, "yes": 1}, 2
    )
    assert isinstance(labels_for(CLASSIFIER, {"id2label": {"0": "LABEL_0"}}), Scores)
    assert labels_for(CLASSIFIER, {}).count == 2
    several = {"problem_type": "multi_label_classification"}
    with pytest.raises(ModelError, match="several labels to one text"):
        labels_for(CLASSIFIER, several)


def test_rows_beyond_the_positions_are_refused(tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"text": "a" * 100, "label": 0}))
    model = LABELED_MODELS["bert"]()
    with pytest.raises(InputError, match="at most 64"):
        labeled_rows(model, tiny_tokenizer(), ExampleSettings(str(data), length=65))
    with pytest.warns(UserWarning, match="1 inputs .* are cut to 64"):
        labeled_rows(model, tiny_tokenizer(), ExampleSettings(str(data)))


@pytest.mark.slow
def test_a_dense_export_is_a_plain_model(tmp_path):
    model, data = LABELED_MODELS["t5"](), examples_file(tmp_path / "rows.jsonl", "t5")
    result = spectrim.compress(model, tiny_tokenizer(), labeled_recipe(data))
    spectrim.save(result.model, tiny_tokenizer(), str(tmp_path / "out"))
    export_dense(tmp_path / "out", tmp_path / "dense")
    plain = type(model).from_pretrained(tmp_path / "dense")
    assert not any(isinstance(module, CompactLinear) for module in plain.modules())
    rows = rows_of(model, data, 4)
    expected = logits(result.model, rows)
    assert torch.allclose(logits(plain, rows), expected, atol=FULL_RANK_ABSOLUTE)
