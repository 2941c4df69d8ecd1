"""Any module under any loss: statistics, predictions, what is saved, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    ViTConfig,
    ViTModel,
)

import spectrim
from spectrim.allocation import LayerTimes
from spectrim.calibration.any_loss import calibrate_module
from spectrim.errors import InputError, ModelError, NumericalWarning
from spectrim.layers import CompactLinear
from spectrim.models.targets import find_targets
from spectrim.pipeline import latency_table
from spectrim.pipeline.recipe import EmbeddingRecipe, LatencyRecipe, Recipe, SharingRecipe
from tests.tolerances import FLOAT32_RELATIVE, SAMPLED_FISHER_RELATIVE

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def bert(kind, **more):
    torch.manual_seed(0)
    return kind(BertConfig(vocab_size=80, max_position_embeddings=32, **SIZES, **more)).eval()


def token_batches(count=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "input_ids": torch.randint(1, 80, (4, 12), generator=generator),
            "attention_mask": torch.ones(4, 12, dtype=torch.long),
        }
        for _ in range(count)
    ]


def pooled(model, batch):
    return nn.functional.normalize(model(**batch).last_hidden_state.mean(1), dim=-1)


def classified(model, batch):
    labels = batch["input_ids"][:, 0] % 3
    return cross_entropy(model(**batch).logits, labels, reduction="none")


def unmasked(model, batch):
    hidden = batch | {"input_ids": batch["input_ids"].index_fill(1, torch.tensor([3]), 0)}
    return cross_entropy(
        model(**hidden).logits[:, 3], batch["input_ids"][:, 3], reduction="none"
    )


def seen(model, batch):
    return model(pixel_values=batch).last_hidden_state[:, 0]


def images():
    return list(torch.randn(6, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0)))


CASES = {
    "sentences": (lambda: bert(BertModel), pooled, None, token_batches),
    "classes": (
        lambda: bert(BertForSequenceClassification, num_labels=3),
        lambda model, batch: model(**batch).logits,
        classified,
        token_batches,
    ),
    "masked": (
        lambda: bert(BertForMaskedLM),
        lambda model, batch: model(**batch).logits[:, 3],
        unmasked,
        token_batches,
    ),
    "images": (
        lambda: ViTModel(ViTConfig(image_size=16, patch_size=4, **SIZES)).eval(),
        seen,
        None,
        images,
    ),
}


@pytest.mark.few(1)
@pytest.mark.parametrize("case", CASES)
def test_encoders_are_compressed_and_loaded(case, tmp_path):
    torch.manual_seed(1)
    make, outputs, loss, batches = CASES[case]
    model, data = make(), batches()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    recipe = Recipe(budget=0.6)
    found = spectrim.compress_any(model, data, loss or spectrim.agreement_loss(outputs), recipe)
    assert found.plan.kept <= 0.6
    assert found.plan.predicted_loss > 0
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(p.requires_grad for p in model.parameters())
    assert any(isinstance(m, CompactLinear) for m in found.model.modules())
    spectrim.save(found.model, None, str(tmp_path / "out"))
    again = type(model).from_pretrained(tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(outputs(again, data[0]), outputs(found.model, data[0]))
        assert not torch.equal(outputs(again, data[0]), outputs(model, data[0]))
    if case == "sentences":
        assert isinstance(AutoModel.from_pretrained(tmp_path / "out"), BertModel)


def test_a_linear_regression_costs_what_is_predicted():
    """Agreement of y = W x is quadratic: 1/2 E ||(W - W_r) x||^2, but for the drawn labels."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 16, bias=False))
    data = [torch.randn(512, 24) * torch.linspace(0.2, 2, 24) for _ in range(16)]
    loss = spectrim.agreement_loss(lambda model, batch: model(batch))
    recipe = Recipe(method="svd_llm", allocation="uniform", layer="lowrank", budget=0.5)
    found = spectrim.factorize_any(model, data, loss, recipe)
    plan = spectrim.plan(found, recipe)
    smaller = spectrim.replace_layers(model, found, plan)
    with torch.no_grad():
        x = torch.cat(data)
        cost = float(0.5 * (smaller(x) - model(x)).square().sum(1).mean())
    assert plan.predicted_loss == pytest.approx(cost, rel=SAMPLED_FISHER_RELATIVE)


def test_padding_does_not_count():
    model, batch = bert(BertModel), token_batches(1)[0]
    longer = {
        "input_ids": nn.functional.pad(batch["input_ids"], (0, 5)),
        "attention_mask": nn.functional.pad(batch["attention_mask"], (0, 5)),
    }

    def loss(model, batch):
        real = batch["attention_mask"][..., None]
        return (model(**batch).last_hidden_state * real)[..., :5].sum((1, 2))

    names = ("input_covariance", "gradient_covariance")
    found = [
        calibrate_module(
            model, find_targets(model), [one], loss, names, lambda b: b["attention_mask"]
        )
        for one in (batch, longer)
    ]
    assert found[0].counts == found[1].counts
    for layer in found[0].groups:
        for name in names:
            one, two = (each.layer(layer)[name] for each in found)
            if found[0].counts[layer]:
                scale = float(one.abs().max())
                assert float((one - two).abs().max()) <= 10 * FLOAT32_RELATIVE * scale


def test_tables_keep_what_is_read():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(200, 16), nn.Flatten(), nn.Linear(64, 8))
    data = [torch.randint(0, 20, (64, 4)) for _ in range(4)]
    loss = spectrim.agreement_loss(lambda model, batch: model(batch))
    errors = {}
    for method in ("obd", "svd"):
        recipe = Recipe(budget=1.0, embeddings=EmbeddingRecipe(0.5, method))
        found = spectrim.compress_any(model, data, loss, recipe)
        assert found.tables == {"0": 7}
        with torch.no_grad():
            errors[method] = sum(
                float((model(b) - found.model(b)).square().sum()) for b in data
            )
    assert errors["obd"] < 0.5 * errors["svd"]


def test_what_is_refused():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    data = [torch.randn(4, 8)]

    def good(model, batch):
        return model(batch).sum(1)

    with pytest.raises(InputError, match="one number per example"):
        spectrim.compress_any(model, data, lambda m, b: m(b).sum())
    with pytest.raises(InputError, match="no batches"):
        spectrim.compress_any(model, [], good)
    with pytest.raises(ModelError, match="batch 0"):
        spectrim.compress_any(model, data, lambda m, b: m(b).sum(1) / 0)
    with pytest.raises(InputError, match="second pass"):
        spectrim.compress_any(model, iter(data), good, Recipe(embeddings=EmbeddingRecipe()))
    with pytest.raises(InputError, match="no lookup table gets smaller"):
        spectrim.compress_any(model, data, good, Recipe(embeddings=EmbeddingRecipe()))
    with pytest.raises(InputError, match="row_fisher"):
        spectrim.compress_any(model, data, good, Recipe(method="fwsvd"))
    sharing = SharingRecipe("same_input")
    with pytest.raises(InputError, match="sharing"):
        spectrim.compress_any(model, data, good, Recipe(sharing=sharing))


def test_a_budget_of_time(monkeypatch):
    """Planned by measured times, here a nanosecond a weight."""

    def by_weights(shape, kind, place):
        ranks = tuple(range(1, min(shape) + 1))
        times = tuple(1e-9 * rank * sum(shape) for rank in ranks)
        return LayerTimes(1e-9 * shape[0] * shape[1], ranks, times)

    monkeypatch.setattr(latency_table, "layer_times", by_weights)
    recipe = Recipe(layer="lowrank", latency=LatencyRecipe(budget=0.6))
    model = bert(BertModel)
    made = spectrim.compress_any(
        model, token_batches(), spectrim.agreement_loss(pooled), recipe
    )
    assert 0.55 < made.plan.provenance["latency"]["predicted"] <= 0.6
    assert made.plan.kept == pytest.approx(0.6, abs=0.02)


class ReadsItsWeight(nn.Module):
    """A layer used by its weight, one called by keyword, and one that is called."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        x = self.first(x).tanh()
        x = (x @ self.second.weight.T).tanh()
        return self.third(input=x)


def test_layers_that_are_not_just_called_stay_dense():
    model = ReadsItsWeight()
    batches = [torch.randn(16, 8) for _ in range(4)]
    with pytest.warns(NumericalWarning, match=r"2 of 3 layers stay dense.*second.*third"):
        made = spectrim.compress_any(
            model,
            batches,
            lambda m, x: m(x).square().sum(-1),
            Recipe(budget=0.7, layer="lowrank"),
        )
    assert set(made.plan.layers) == {"first"}
    assert torch.isfinite(made.model(batches[0])).all()
