"""Statistics under a model's own loss: padding, sides, batches, and drawn labels."""

from __future__ import annotations

import pytest
import torch

from spectrim.calibration import CalibrationSettings
from spectrim.calibration.any_loss import calibrate_module
from spectrim.calibration.in_memory import calibrate
from spectrim.calibration.labeled import labeled_batches, whole_batch
from spectrim.errors import InputError
from spectrim.models.targets import find_targets
from spectrim.pipeline.labeled import ExampleSettings, labeled_rows
from tests.labeled_examples import TARGETS, examples_file
from tests.tiny_models import LABELED_MODELS, tiny_tokenizer
from tests.tolerances import AUTOGRAD_RELATIVE, BATCH_SPLIT_RELATIVE

NAMES = ("input_covariance", "gradient_covariance")


@pytest.fixture(params=LABELED_MODELS)
def case(request, tmp_path):
    model = LABELED_MODELS[request.param]()
    data = examples_file(tmp_path / "rows.jsonl", request.param, 10)
    return model, labeled_rows(model, tiny_tokenizer(), ExampleSettings(str(data)))


def sums(model, rows, tokens, **settings):
    given = CalibrationSettings(NAMES, tokens_per_batch=tokens, **settings)
    return calibrate(model, find_targets(model), rows, given)


@pytest.mark.few(2)
def test_batches_with_padding_sum_what_single_rows_sum(case):
    model, rows = case
    alone, together = sums(model, rows, 1), sums(model, rows, 4096)
    assert alone.tokens == together.tokens == int((rows.labels != -100).sum())
    assert alone.counts == together.counts
    for statistic, layers in together.states.items():
        for name, state in layers.items():
            for key, value in state.items():
                other = alone.states[statistic][name][key]
                scale = value.abs().max().clamp_min(1e-12)
                assert (value - other).abs().max() <= 10 * BATCH_SPLIT_RELATIVE * scale, name


def test_gradients_are_those_of_the_summed_loss(case):
    """The weight's gradient is the sum over rows of g x^T: its trace product by autograd."""
    model, rows = case
    target = find_targets(model)[-1]
    layer = model.get_submodule(target.name)
    part = rows.every(len(rows))
    seen = {}

    def keep(module, inputs, output):
        seen["x"] = inputs[0].detach().flatten(0, -2)
        output.register_hook(lambda g: seen.__setitem__("g", g.flatten(0, -2)))

    handle = layer.register_forward_hook(keep)
    batch = whole_batch(part, torch.device("cpu"))
    output = model(**batch.inputs, labels=batch.labels)
    (output.loss * batch.tokens).backward()
    handle.remove()
    model.zero_grad()
    found = sums(model, part, 4096).layer(target.name)
    count = found.count
    expected = (seen["g"].double().T @ seen["g"].double()) / count
    error = (found["gradient_covariance"] - expected).abs().max()
    assert error <= AUTOGRAD_RELATIVE * expected.abs().max()


def test_layers_of_both_sides_count_their_own_tokens(tmp_path):
    model = LABELED_MODELS["bart"]()
    data = examples_file(tmp_path / "rows.jsonl", "bart", 10)
    rows = labeled_rows(model, tiny_tokenizer(), ExampleSettings(str(data)))
    found = sums(model, rows, 256)
    read = int(rows.inputs["attention_mask"].sum())
    written = int((rows.labels != -100).sum())
    assert found.counts["model.encoder.layers.0.fc1"] == read
    assert found.counts["model.decoder.layers.0.encoder_attn.k_proj"] == read
    assert found.counts["model.decoder.layers.0.encoder_attn.q_proj"] == written
    assert found.counts["model.decoder.layers.1.fc2"] == written


def test_any_loss_with_a_mask_for_each_side_sums_the_same(tmp_path):
    model = LABELED_MODELS["bart"]()
    data = examples_file(tmp_path / "rows.jsonl", "bart", 10)
    rows = labeled_rows(model, tiny_tokenizer(), ExampleSettings(str(data)))
    batches = list(labeled_batches(rows, 128, 0, torch.device("cpu")))

    def loss(model, batch):
        return batch.run(model).loss.expand(batch.tokens)

    def masks(batch):
        return [batch.inputs["attention_mask"], batch.counted]

    targets = find_targets(model)
    found = calibrate_module(model, targets, batches, loss, NAMES, masks)
    expected = sums(model, rows, 128)
    assert found.tokens == expected.tokens
    assert found.counts == expected.counts
    for name in ("model.encoder.layers.0.fc1", "model.decoder.layers.1.encoder_attn.v_proj"):
        one, other = (c.layer(name)["gradient_covariance"] for c in (found, expected))
        assert (one - other).abs().max() <= BATCH_SPLIT_RELATIVE * other.abs().max()


def test_a_classifiers_config_stays_as_it_was(case):
    model, rows = case
    before = model.config.to_dict()
    sums(model, rows, 64)
    assert model.config.to_dict() == before


@pytest.mark.few(2)
def test_drawn_labels_depend_on_the_seed_and_not_on_batches(case):
    model, rows = case
    first, again, other = (
        sums(model, rows, tokens, labels="sampled", seed=seed)
        for tokens, seed in ((1, 0), (4096, 0), (4096, 1))
    )
    name = find_targets(model)[-1].name
    one, same, new = (c.layer(name)["gradient_covariance"] for c in (first, again, other))
    scale = one.abs().max()
    assert (one - same).abs().max() <= 10 * BATCH_SPLIT_RELATIVE * scale
    assert (one - new).abs().max() > 1e-3 * scale


def test_scores_have_no_drawn_labels(tmp_path):
    model = LABELED_MODELS["bert"]()
    model.config.num_labels = 1
    model.config.problem_type = None
    data = tmp_path / "rows.jsonl"
    data.write_text('{"text": "ab", "label": 0.5}')
    model.classifier = torch.nn.Linear(32, 1)
    model.num_labels = 1
    rows = labeled_rows(model, tiny_tokenizer(), ExampleSettings(str(data)))
    batch = next(labeled_batches(rows, 64, 0, torch.device("cpu")))
    assert batch.forward(model).shape == (1, 1)
    assert sums(model, rows, 64).tokens == 1
    with pytest.raises(InputError, match="cannot be sampled"):
        sums(model, rows, 64, labels="sampled")


def test_names_of_targets_are_those_of_the_models():
    assert set(TARGETS) <= set(LABELED_MODELS)
