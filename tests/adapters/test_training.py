"""Spectral adapters trained: by `finetune` on every kind of base, and by Trainer."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from transformers import Trainer, TrainingArguments

from spectrim.adapters import SVFitConfig
from spectrim.checkpoint import load, save_compressed
from spectrim.errors import InputError, ModelError
from spectrim.pipeline.finetune import FinetuneSettings, finetune, finetune_and_record
from spectrim.runtime import snapshots
from spectrim.runtime.cache import Cache
from spectrim.runtime.context import RunContext
from tests.adapters.building import NAMES, logits, names, trained
from tests.adapters.test_qlora import codes
from tests.pipeline.test_finetune import QUICK, ranks, small
from tests.runs import MetricLog, text_file
from tests.tiny_models import tiny_llama, tiny_tokenizer, tiny_tokens
from tests.tolerances import MERGED_ABSOLUTE


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    return text_file(tmp_path_factory.mktemp("text") / "text.txt")


def settings(text: Path, adapter: str, **changes) -> FinetuneSettings:
    given = {
        "learning_rate": 5e-2 if adapter in ("svfit", "salt") else 1e-2,
        **QUICK,
        **changes,
    }
    return FinetuneSettings(data=str(text), adapter=adapter, **given)


@pytest.mark.few(2)
@names
def test_dense_model_learns(name, text, tmp_path):
    model, log = tiny_llama(), MetricLog()
    head = model.lm_head.weight.clone()
    asked = settings(text, name)
    entry = finetune_and_record(
        model,
        tiny_tokenizer(),
        asked,
        RunContext(log_metrics=log),
        adapter_directory=tmp_path / "adapter",
    )
    [losses] = log.series.values()
    assert sum(losses[-5:]) < sum(losses[:5])
    assert entry["name"] == name
    assert torch.equal(model.lm_head.weight, head)
    assert all(p.requires_grad for p in model.parameters())
    assert not any("_params" in name for name, _ in model.named_parameters())
    alone = peft.PeftModel.from_pretrained(tiny_llama(), tmp_path / "adapter")
    torch.testing.assert_close(logits(alone), logits(model), atol=MERGED_ABSOLUTE, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"), [("svfit", "lowrank"), ("obd", "pivoted"), ("soka", "pivoted")]
)
def test_compressed_model_learns_at_its_size(name, kind, text, tmp_path):
    model = small(kind)
    before = ranks(model)
    shapes = {n: t.shape for n, t in model.state_dict().items()}
    finetune(model, tiny_tokenizer(), settings(text, name))
    assert ranks(model) == before
    assert {n: t.shape for n, t in model.state_dict().items()} == shapes
    config = model.config.quantization_config
    assert config.provenance["refinement"][-1]["name"] == name
    save_compressed(model, None, tmp_path / "out", config)
    assert torch.equal(logits(load(tmp_path / "out")[0]), logits(model))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "base"),
    [(name, "nf4") for name in NAMES if name != "obd"] + [("pissa", "int4"), ("soka", "int4")],
)
def test_quantized_base_stays_to_the_bit(name, base, text, tmp_path):
    model, log = small("lowrank"), MetricLog()
    asked = settings(text, name, quantize_base=base, steps=6)
    finetune(model, tiny_tokenizer(), asked, RunContext(log_metrics=log))
    fixed = small("lowrank")
    again = FinetuneSettings(
        data=str(text), lora=1, quantize_base=base, learning_rate=1e-9, **QUICK | {"steps": 1}
    )
    finetune(fixed, tiny_tokenizer(), again)
    own = {k: v for k, v in codes(model).items() if "adapter" not in k}
    other = codes(fixed)
    assert own.keys() == other.keys()
    assert all(torch.equal(own[key], other[key]) for key in own)
    save_compressed(model, None, tmp_path / "out", model.config.quantization_config)
    loaded = load(tmp_path / "out", dtype=torch.float32)[0]
    assert torch.equal(logits(loaded), logits(model))


def test_layers_quantized_whole_get_a_path(text):
    """Of a compressed model, a layer that was left dense and then quantized."""
    model = small("lowrank")
    name, _ = next(iter(model.config.quantization_config.layers.items()))
    weight, _ = model.get_submodule(name).dense()
    model.set_submodule(name, torch.nn.Linear(*reversed(weight.shape), bias=False))
    model.config.quantization_config.layers.pop(name)
    finetune(model, tiny_tokenizer(), settings(text, "milora", quantize_base="nf4", steps=3))
    assert model.get_submodule(name).rank == 16
    assert model.config.quantization_config.layers[name]["rank"] == 16


def test_statistics_of_quantized_layers_are_refused(text):
    with pytest.raises(ModelError, match="not quantized"):
        finetune(small(), tiny_tokenizer(), settings(text, "obd", quantize_base="nf4"))


@pytest.mark.slow
def test_an_interrupted_run_ends_where_it_would_have(text, tmp_path, monkeypatch):
    monkeypatch.setattr(snapshots, "SECONDS_BETWEEN_SAVES", 0.0)

    def stopping(items, what, total):
        for number, item in enumerate(items):
            if number == 11:
                raise KeyboardInterrupt
            yield item

    asked = settings(text, "salt")
    whole = finetune(tiny_llama(), tiny_tokenizer(), asked)
    kept, model = Cache(tmp_path), tiny_llama()
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(KeyboardInterrupt):
        finetune(model, tiny_tokenizer(), asked, RunContext(kept, stopping))
    assert all(torch.equal(model.state_dict()[name], t) for name, t in start.items())
    again = finetune(model, tiny_tokenizer(), asked, RunContext(kept))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_options_reach_the_adapter(text, tmp_path):
    asked = settings(text, "svfit", adapter_option=("r=4", "core=full"), steps=2)
    given = tiny_llama(), tiny_tokenizer(), asked, RunContext()
    finetune_and_record(*given, adapter_directory=tmp_path)
    found = peft.PeftConfig.from_pretrained(tmp_path)
    assert (found.r, found.core) == (4, "full")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lora": 4}, "two kinds"),
        ({"adapter": None, "adapter_option": ("r=4",)}, "needs an adapter"),
        ({"adapter_option": ("r",)}, "NAME=VALUE"),
        ({"adapter_option": ("ramk=4",)}, "no option 'ramk'"),
        ({"adapter": "svfi"}, "did you mean 'svfit'"),
        ({"adapter_option": ("r=0",)}, "expected above 0"),
    ],
)
def test_settings_that_cannot_be_used(changes, said, text):
    with pytest.raises(InputError, match=said):
        settings(text, **({"adapter": "svfit"} | changes))


@pytest.mark.slow
def test_trainer_trains_saves_and_loads(tmp_path):
    model = peft.get_peft_model(tiny_llama(), SVFitConfig(task_type="CAUSAL_LM"))
    rows = [{"input_ids": row, "labels": row} for row in tiny_tokens(rows=16, length=16)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=12,
        learning_rate=5e-2,
        per_device_train_batch_size=8,
        report_to=[],
        save_strategy="steps",
        save_steps=12,
        use_cpu=True,
        seed=0,
    )
    first = float(model(input_ids=tiny_tokens(), labels=tiny_tokens()).loss)
    done = Trainer(model=model, args=arguments, train_dataset=rows).train()
    assert done.training_loss < first
    assert any(parameter.any() for parameter in trained(model).values())
    again = peft.PeftModel.from_pretrained(tiny_llama(), tmp_path / "run" / "checkpoint-12")
    assert torch.equal(logits(again), logits(model.eval()))
