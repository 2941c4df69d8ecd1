"""Fine-tuning of compressed models: factors, PEFT adapters, transformers' Trainer."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

import spectrim
from spectrim.checkpoint import attach_config, load, save_compressed
from spectrim.errors import InputError, ModelError
from spectrim.layers import LAYERS, CompactLinear
from spectrim.pipeline.finetune import FinetuneSettings, finetune
from spectrim.runtime import snapshots
from spectrim.runtime.cache import Cache
from spectrim.runtime.context import RunContext
from tests.checkpoint.compressing import compress
from tests.runs import MetricLog, text_file
from tests.tiny_models import TINY_MODELS, tiny_llama, tiny_tokenizer, tiny_tokens
from tests.tolerances import PRODUCT_ABSOLUTE

needs_peft = pytest.mark.skipif(
    find_spec("peft") is None, reason="PEFT is not installed (extra spectrim[peft])"
)
QUICK = {"sequences": 16, "length": 16, "steps": 30, "batch_size": 8}


def small(kind: str = "pivoted", model: str = "llama"):
    made = TINY_MODELS[model]()
    attach_config(made, compress(made, kind))
    return made


def ranks(model: nn.Module) -> dict[str, int]:
    return {n: m.rank for n, m in model.named_modules() if isinstance(m, CompactLinear)}


@torch.no_grad()
def loss(model: nn.Module) -> float:
    ids = tiny_tokens(rows=4, length=16, seed=5)
    return float(model(input_ids=ids, labels=ids).loss)


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    return text_file(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.mark.parametrize("kind", LAYERS.names())
def test_targets_are_the_linear_children(kind):
    model = small(kind)
    for name in spectrim.lora_targets(model):
        module = model.get_submodule(name)
        assert type(module) is nn.Linear
    inside = {name.rpartition(".")[0] for name in spectrim.lora_targets(model)}
    assert inside == set(ranks(model))


def test_targets_among_dense_layers():
    model = tiny_llama()
    names = spectrim.lora_targets(model)
    assert "lm_head" not in names
    assert len(names) == 14


@pytest.mark.few(1)
@needs_peft
@pytest.mark.parametrize("model", ["llama", "gpt2", "moe"])
def test_an_adapter_is_merged_at_the_same_rank(model, tmp_path):
    from peft import LoraConfig, get_peft_model

    made = small(model=model)
    before = ranks(made)
    config = LoraConfig(r=3, target_modules=spectrim.lora_targets(made), task_type="CAUSAL_LM")
    adapted = get_peft_model(made, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    ids = tiny_tokens()
    with torch.no_grad():
        expected = adapted.eval()(ids).logits
    merged = adapted.merge_and_unload()
    assert ranks(merged) == before
    save_compressed(merged, None, tmp_path / "out", merged.config.quantization_config)
    with torch.no_grad():
        found = load(tmp_path / "out")[0](ids).logits
    torch.testing.assert_close(found, expected, atol=PRODUCT_ABSOLUTE, rtol=0)
    assert not torch.allclose(found, small(model=model)(ids).logits, atol=1e-3)


@pytest.mark.slow
def test_trainer_trains_all_weights(tmp_path):
    model, ids = small(), tiny_tokens(rows=16, length=16)
    before, first = ranks(model), loss(model)
    rows = [{"input_ids": row, "labels": row} for row in ids]
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=12,
        learning_rate=1e-2,
        per_device_train_batch_size=8,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        seed=0,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    done = trainer.train()
    assert done.training_loss < first
    trainer.save_model(str(tmp_path / "saved"))
    again = load(tmp_path / "saved", dtype=torch.float32)[0]
    assert ranks(again) == before
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@pytest.mark.slow
@needs_peft
def test_trainer_trains_adapters_alone(tmp_path):
    from peft import LoraConfig, get_peft_model

    model = small()
    fixed = {n: p.clone() for n, p in model.state_dict().items()}
    config = LoraConfig(r=4, target_modules=spectrim.lora_targets(model), task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    rows = [{"input_ids": row, "labels": row} for row in tiny_tokens(rows=16, length=16)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=12,
        learning_rate=3e-2,
        per_device_train_batch_size=8,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        seed=0,
    )
    Trainer(model=adapted, args=arguments, train_dataset=rows).train()
    untouched = {n.replace(".base_layer", ""): p for n, p in model.state_dict().items()}
    for name, tensor in fixed.items():
        assert torch.equal(untouched[name], tensor), name
    merged = adapted.merge_and_unload()
    assert any(not torch.equal(merged.state_dict()[n], p) for n, p in fixed.items())


@pytest.mark.few(1)
@pytest.mark.parametrize("lora", [None, pytest.param(4, marks=needs_peft)])
def test_finetuning_lowers_the_loss_at_the_same_ranks(lora, text):
    model = small()
    before, fingers = ranks(model), spectrim.lora_targets(model)
    head = model.lm_head.weight.clone()
    settings = FinetuneSettings(data=str(text), lora=lora, learning_rate=2e-2, **QUICK)
    log = MetricLog()
    tuned = finetune(model, tiny_tokenizer(), settings, RunContext(log_metrics=log))
    [losses] = log.series.values()
    assert sum(losses[-5:]) < 0.98 * sum(losses[:5])
    assert ranks(tuned) == before
    assert spectrim.lora_targets(tuned) == fingers
    assert torch.equal(tuned.lm_head.weight, head)
    assert not any("lora" in name for name, _ in tuned.named_parameters())
    assert all(p.requires_grad for p in tuned.parameters())
    [entry] = tuned.config.quantization_config.provenance["refinement"]
    assert entry["data"]["source"] == str(text)
    assert entry["losses"][next(iter(entry["losses"]))][1] < losses[0]


@pytest.mark.slow
@needs_peft
def test_an_interrupted_run_ends_where_it_would_have(text, tmp_path, monkeypatch):
    monkeypatch.setattr(snapshots, "SECONDS_BETWEEN_SAVES", 0.0)
    settings = FinetuneSettings(data=str(text), lora=4, learning_rate=2e-2, **QUICK)

    def stopping(items, what, total):
        for number, item in enumerate(items):
            if number == 11:
                raise KeyboardInterrupt
            yield item

    whole = finetune(small(), tiny_tokenizer(), settings)
    kept = Cache(tmp_path)
    model = small()
    start = {name: p.clone() for name, p in model.state_dict().items()}
    with pytest.raises(KeyboardInterrupt):
        finetune(model, tiny_tokenizer(), settings, RunContext(kept, stopping))
    for name, tensor in start.items():
        assert torch.equal(model.state_dict()[name], tensor), name
    again = finetune(model, tiny_tokenizer(), settings, RunContext(kept))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_what_cannot_be_tuned(text):
    with pytest.raises(ModelError, match="not compressed"):
        finetune(tiny_llama(), tiny_tokenizer(), FinetuneSettings(data=str(text)))
    with pytest.raises(InputError, match="one of"):
        FinetuneSettings(data=str(text), task=str(text))


@pytest.mark.skipif(find_spec("peft") is not None, reason="PEFT is installed")
def test_peft_that_is_missing(text):
    with pytest.raises(InputError, match=r"spectrim\[peft\]"):
        finetune(small(), tiny_tokenizer(), FinetuneSettings(data=str(text), lora=4, **QUICK))


def test_answers_are_learnt(tmp_path):
    lines = [{"prompt": f"after {n} comes ", "answer": "x" * 3} for n in range(16)]
    path = tmp_path / "task.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    settings = FinetuneSettings(task=str(path), steps=30, batch_size=8, learning_rate=1e-2)
    log = MetricLog()
    finetune(small(), tiny_tokenizer(), settings, RunContext(log_metrics=log))
    [losses] = log.series.values()
    assert losses[-1] < 0.95 * losses[0]
