"""Whatever a loader raises is one line that says what the checkpoint is and what to do."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from spectrim.checkpoint import (
    check_causal,
    check_dense,
    load,
    save_compressed,
    stored_dtype,
    stored_kind,
    validation,
)
from spectrim.errors import InputError, ModelError, SpectrimError
from spectrim.models.compressible import check_compressible
from spectrim.pipeline.inputs import prepare
from spectrim.pipeline.loaded_model import load_model
from spectrim.pipeline.recipe import Recipe
from tests.checkpoint.compressing import compress
from tests.tiny_models import tiny_llama

FOREIGN = {
    "gptq": {"bits": 4},
    "awq": {"bits": 4},
    "bitsandbytes": {"load_in_4bit": True},
    "compressed-tensors": {},
    "fp8": {},
    "torchao": {"quant_type": "int8_weight_only"},
    "mxfp4": {},
    "of_next_year": {},
}
CHANGES = {
    "quantization_config is text": {"quantization_config": "spectrim"},
    "no quant_method": {"quantization_config": {"bits": 4}},
    "hidden_size no multiple of the heads": {"hidden_size": 63},
    "a field of a wrong type": {"hidden_size": "64"},
    "no heads": {"num_attention_heads": 0},
    "fewer than no layers": {"num_hidden_layers": -1},
    "an unknown dtype": {"dtype": "float33"},
    "a kernel of the Hub": {"_attn_implementation": "someone/attention"},
    "an unknown rope": {"rope_parameters": {"rope_type": "new", "rope_theta": 1.0}},
    "an unknown activation": {"hidden_act": "new"},
    "layers that are not there": {"num_hidden_layers": 10**7},
    "infinitely many layers": {"num_hidden_layers": float("inf")},
}


@pytest.fixture
def dense(tmp_path) -> Path:
    tiny_llama().save_pretrained(tmp_path / "dense")
    return tmp_path / "dense"


@pytest.fixture
def compressed(saved, tmp_path) -> Path:
    return shutil.copytree(saved["llama", "lowrank"].directory, tmp_path / "copy")


def edit(directory: Path, **changes) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(directory: Path) -> str:
    with pytest.raises(SpectrimError) as caught:
        load(directory)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("method", FOREIGN)
def test_models_quantized_by_others_are_named(dense, method):
    edit(dense, quantization_config={"quant_method": method, **FOREIGN[method]})
    line = refusal(dense)
    assert f"quantized ({method}" in line
    assert "give the model that it was made from" in line
    with pytest.raises(ModelError, match=method):
        check_dense(dense)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_damaged_config_is_one_line(dense, change):
    edit(dense, **change)
    before = time.process_time()
    assert str(dense) in refusal(dense)
    assert time.process_time() - before < 20, "nothing is built that the shards do not hold"


def test_counts_of_nested_configs_are_compared(dense):
    edit(dense, text_config={"num_experts": 10**9})
    assert "'num_experts' is 1000000000" in refusal(dense)


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json"])
def test_other_files_that_are_no_mapping(dense, name):
    (dense / name).write_text("[1]")
    assert name in refusal(dense)


def test_a_config_of_many_bytes_is_not_parsed(dense, monkeypatch):
    monkeypatch.setattr(validation, "_LARGEST_JSON", 100)
    assert "expected at most 100" in refusal(dense)


def test_entries_without_their_tensors(compressed):
    settings = json.loads((compressed / "config.json").read_text())["quantization_config"]
    table = {"name": "model.embed_tokens", "rank": 4, "mean": True, "head": None}
    edit(compressed, quantization_config=settings | {"embeddings": table})
    assert "missing" in refusal(compressed)
    head = {"lm_head": {"kind": "pivoted", "rank": 3}}
    settings["layers"] |= head
    edit(compressed, quantization_config=settings, tie_word_embeddings=True)
    refusal(compressed)


def test_a_missing_package(dense):
    edit(dense, model_type="own", auto_map={"AutoConfig": "conf.Own"})
    (dense / "conf.py").write_text("import a_package_nobody_has\n")
    with pytest.raises(SpectrimError, match="a_package_nobody_has"):
        load(dense, trust_remote_code=True)
    assert "--trust-remote-code" in refusal(dense)
    assert stored_dtype(dense) == torch.float32, "read without running the model's code"


def test_memory_errors_are_not_about_the_checkpoint(dense, monkeypatch):
    def full(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(MemoryError):
        load(dense)


def test_an_adapter_alone_and_beside_a_model(dense, tmp_path):
    adapter = json.dumps({"peft_type": "LORA", "base_model_name_or_path": "someone/base"})
    (dense / "adapter_config.json").write_text(adapter)
    assert "a model and a PEFT adapter" in refusal(dense)
    (dense / "config.json").unlink()
    line = refusal(dense)
    assert "PEFT adapter of someone/base" in line
    assert "merge_and_unload" in line
    assert "--merge-adapter" in line


def test_an_adapter_on_the_hub(monkeypatch):
    module = sys.modules[load.__module__]
    monkeypatch.setattr(module, "find_adapter_config_file", lambda *a, **k: "/somewhere")
    with pytest.raises(ModelError, match="PEFT adapter"):
        load("someone/adapter")


def test_pickles_come_with_a_command(dense):
    (dense / "model.safetensors").rename(dense / "pytorch_model.bin")
    assert f"M.from_pretrained('{dense}').save_pretrained('NEW')" in refusal(dense)


@pytest.mark.parametrize("name", ["~nobody_of_that_name/x", "x" * 5000, "a\0b"])
def test_names_that_no_file_system_takes(name):
    with pytest.raises(InputError, match="no directory"):
        load(name)


def test_a_compressed_model_is_not_compressed_again(tmp_path):
    model = tiny_llama()
    directory = save_compressed(model, None, tmp_path / "a", compress(model, "lowrank"))
    with pytest.raises(ModelError, match=r"already compressed.*export --dense"):
        check_dense(directory)
    with pytest.raises(ModelError, match="already compressed"):
        prepare(load(directory)[0], Recipe())
    check_compressible(tiny_llama())


def test_adapters_in_memory_are_refused():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(tiny_llama(), config)
    with pytest.raises(ModelError, match="merge_and_unload"):
        prepare(adapted, Recipe())
    injected = tiny_llama()
    injected.add_adapter(config)
    with pytest.raises(ModelError, match="PEFT"):
        prepare(injected, Recipe())
    prepare(adapted.merge_and_unload(), Recipe())


OTHER_KINDS = {
    "T5EncoderModel": {"is_encoder_decoder": True, "model_type": "t5"},
    "WhisperForAudioClassification": {"is_encoder_decoder": True, "model_type": "whisper"},
    "BertForTokenClassification": {"model_type": "bert"},
}
LABELED_KINDS = {
    "WhisperForConditionalGeneration": {"is_encoder_decoder": True, "model_type": "whisper"},
    "T5ForConditionalGeneration": {"is_encoder_decoder": True, "model_type": "t5"},
    "LlamaForSequenceClassification": {},
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_other_kinds_of_models_are_named_with_the_way(dense, kind):
    """A head would be random, and a decoder without its encoder is another model."""
    edit(dense, architectures=[kind], **OTHER_KINDS[kind])
    line = refusal(dense)
    assert kind in line
    assert "not a causal language model" in line
    assert "spectrim.compress_any(model, batches, loss)" in line


@pytest.mark.parametrize("kind", LABELED_KINDS)
def test_models_with_labels_are_named_where_text_is_read(dense, kind):
    edit(dense, architectures=[kind], **LABELED_KINDS[kind])
    with pytest.raises(ModelError) as raised:
        check_causal(dense)
    assert kind in str(raised.value)
    assert "not a causal language model" in str(raised.value)
    assert "examples with labels as --data" in str(raised.value)
    assert stored_kind(dense).labeled
    with pytest.raises(ModelError, match="not a causal language model"):
        load_model(str(dense))


@pytest.mark.slow
def test_models_of_images_alone(dense):
    edit(dense, model_type="clip", architectures=["CLIPModel"])
    line = refusal(dense)
    assert "save the language model alone" in line
    assert "compress_any" in line
