from __future__ import annotations

import importlib
import shutil
import warnings
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, Trainer, TrainingArguments
from transformers.quantizers import auto

import spectrim.checkpoint
from spectrim.checkpoint import (
    SaveOptions,
    SpectrimConfig,
    attach_config,
    load,
    save_compressed,
)
from spectrim.errors import CheckpointError
from spectrim.models.replace import factored_layers
from tests.checkpoint.compressing import KINDS, compress, logits, replace_by_svd
from tests.tiny_models import (
    TINY_MODELS,
    tiny_gqa,
    tiny_llama,
    tiny_mixtral,
    tiny_tied,
    tiny_tokenizer,
    tiny_tokens,
)

CASES = [(name, kind) for name in TINY_MODELS for kind in KINDS]


@pytest.mark.few(8)
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_loads_exactly_and_saves_again(saved, case, tmp_path):
    model, tokenizer = load(saved[case].directory)
    assert torch.equal(logits(model), saved[case].logits)
    assert tokenizer.eos_token_id == 1
    model.save_pretrained(tmp_path)
    again, no_tokenizer = load(tmp_path)
    assert torch.equal(logits(again), saved[case].logits)
    assert no_tokenizer is None
    assert again.config.quantization_config.to_dict() == _config(saved[case].directory)
    ranks = {name: layer.rank for name, layer in factored_layers(again)}
    assert ranks == {n: e["rank"] for n, e in model.config.quantization_config.layers.items()}


def _config(directory) -> dict:
    model, _ = load(directory)
    return model.config.quantization_config.to_dict()


@pytest.mark.few(8)
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_a_loaded_model_is_an_ordinary_one(saved, case):
    model, _ = load(saved[case].directory)
    assert not model.is_quantized
    assert not hasattr(model, "hf_quantizer")
    assert not any(name.endswith("_is_quantized") for name in vars(model.config))
    assert not any("weight" in vars(layer) for _, layer in factored_layers(model))
    out = model.generate(tiny_tokens(1, 4), max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert out.shape == (1, 7)
    assert model.half().dtype == torch.float16


def test_plain_from_pretrained_reads_it(saved):
    case = saved["gqa", "pivoted"]
    model = AutoModelForCausalLM.from_pretrained(case.directory)
    assert torch.equal(logits(model), case.logits)


@pytest.mark.parametrize("name", ["gqa", "gpt2", "mixtral"])
def test_the_bare_base_model_reads_it(saved, name):
    directory = saved[name, "lowrank"].directory
    whole, _ = load(directory)
    bare = AutoModel.from_pretrained(directory)
    with torch.no_grad():
        expected = whole.base_model(tiny_tokens()).last_hidden_state
        assert torch.equal(bare(tiny_tokens()).last_hidden_state, expected)


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_and_shards(kind, tmp_path):
    tiny_gqa().save_pretrained(tmp_path / "base")
    model, _ = load(tmp_path / "base", dtype=torch.bfloat16)
    config = compress(model, kind)
    save_compressed(model, None, tmp_path / "a", config, SaveOptions(max_shard_size="20KB"))
    assert len(list((tmp_path / "a").glob("*.safetensors"))) > 2
    again, _ = load(tmp_path / "a")
    assert again.dtype == torch.bfloat16
    assert torch.equal(logits(again), logits(model))


@pytest.mark.slow
def test_a_model_whose_base_came_from_disk(tmp_path):
    """`from_pretrained` remembers the names of the original checkpoint; we do not use them."""
    tiny_mixtral().save_pretrained(tmp_path / "base")
    model, _ = load(tmp_path / "base")
    save_compressed(model, None, tmp_path / "small", compress(model, "pivoted"))
    again, _ = load(tmp_path / "small")
    assert torch.equal(logits(again), logits(model))


def test_save_pretrained_after_mark_compressed(tmp_path):
    model = tiny_mixtral()
    attach_config(model, compress(model, "lowrank"))
    model.save_pretrained(tmp_path)
    again, _ = load(tmp_path)
    assert torch.equal(logits(again), logits(model))


def test_an_untied_output_embedding(tmp_path):
    model = tiny_tied()
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    replace_by_svd(model, "lm_head", "lowrank", 8)
    entries = {"lm_head": {"kind": "lowrank", "rank": 8}}
    with pytest.raises(CheckpointError, match="untie"):
        save_compressed(model, None, tmp_path / "a", SpectrimConfig(entries))
    save_compressed(model, None, tmp_path / "a", SpectrimConfig(entries, untied=True))
    again, _ = load(tmp_path / "a")
    assert torch.equal(logits(again), logits(model))


def test_a_dense_model_loads_too(tmp_path):
    model = tiny_tied()
    model.save_pretrained(tmp_path)
    again, _ = load(tmp_path)
    assert torch.equal(logits(again), logits(model))


def test_factors_that_are_not_quantized_as_the_config_says(tmp_path):
    model = tiny_llama()
    config = compress(model, "lowrank")
    config.inner = {"base": "rtn", "options": {"bits": 4, "group": 8}}
    with pytest.raises(CheckpointError, match="inner"):
        save_compressed(model, None, tmp_path / "a", config)


@pytest.mark.slow
def test_trainer_accepts_a_loaded_model(saved, tmp_path):
    model, _ = load(saved["llama", "lowrank"].directory)
    tokens = tiny_tokens(4, 8)
    rows = [{"input_ids": row, "labels": row} for row in tokens]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=1, report_to=[], use_cpu=True, disable_tqdm=True
    )
    before = logits(model)
    Trainer(model=model, args=arguments, train_dataset=rows).train()
    assert not torch.equal(before, logits(model.eval()))


def test_registering_twice_is_harmless():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.reload(spectrim.checkpoint)
    assert auto.AUTO_QUANTIZATION_CONFIG_MAPPING["spectrim"] is SpectrimConfig


def test_a_config_that_does_not_describe_the_model(tmp_path):
    model = tiny_llama()
    config = compress(model, "lowrank")
    name = next(iter(config.layers))
    config.layers[name] = {"kind": "lowrank", "rank": 1}
    with pytest.raises(CheckpointError, match=name):
        save_compressed(model, tiny_tokenizer(), tmp_path / "a", config)
    assert not (tmp_path / "a").exists()


def test_push_to_hub_sends_what_loads(saved, tmp_path, monkeypatch):
    case, sent = saved["llama", "pivoted"], tmp_path / "sent"
    api = SimpleNamespace(create_repo=lambda *a, **k: SimpleNamespace(repo_id="a/b"))
    card = SimpleNamespace(save=lambda path: None)

    def upload(self, working_dir, repo_id, **more):
        assert repo_id == "a/b"
        shutil.copytree(working_dir, sent)

    monkeypatch.setattr("transformers.utils.hub.hf_api", lambda: api)
    monkeypatch.setattr(
        "transformers.utils.hub.create_and_tag_model_card", lambda *a, **k: card
    )
    model, _ = load(case.directory)
    monkeypatch.setattr(type(model), "_upload_modified_files", upload)
    model.push_to_hub("a/b")
    assert torch.equal(logits(load(sent)[0]), case.logits)
