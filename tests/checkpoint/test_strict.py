"""Damaged, foreign and hostile checkpoints are refused with the right error."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.quantizers import auto

from spectrim.checkpoint import SaveOptions, load, save_compressed
from spectrim.checkpoint.import_guard import GUARD
from spectrim.checkpoint.load import BUNDLED
from spectrim.checkpoint.validation import weight_files
from spectrim.errors import CheckpointError, InputError, ModelError
from spectrim.models.kind import CAUSAL
from tests.checkpoint.compressing import compress
from tests.tiny_models import tiny_gqa, tiny_llama

WEIGHTS = "model.safetensors"
LEFT = "model.layers.1.mlp.up_proj.left.weight"


@pytest.fixture
def copied(saved, tmp_path) -> Path:
    return shutil.copytree(saved["llama", "lowrank"].directory, tmp_path / "copy")


def rewrite(directory: Path, change) -> None:
    tensors = load_file(directory / WEIGHTS)
    change(tensors)
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})


def test_a_missing_tensor(copied):
    rewrite(copied, lambda tensors: tensors.pop(LEFT))
    with pytest.raises(CheckpointError, match=f"{LEFT} missing"):
        load(copied)
    AutoModelForCausalLM.from_pretrained(copied)  # transformers itself only warns


def test_an_unexpected_tensor(copied):
    rewrite(copied, lambda tensors: tensors.update(more=torch.zeros(1)))
    with pytest.raises(CheckpointError, match="more unexpected"):
        load(copied)


def test_a_tensor_of_another_shape(copied):
    rewrite(copied, lambda tensors: tensors.update({LEFT: torch.zeros(3, 5)}))
    with pytest.raises(CheckpointError, match=rf"{LEFT} \(3, 5\) instead of \(64, ") as caught:
        load(copied)
    assert "of another shape" in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(copied, value):
    rewrite(copied, lambda tensors: tensors[LEFT].__setitem__((0, 0), value))
    with pytest.raises(ModelError, match=LEFT):
        load(copied)


@pytest.mark.parametrize(
    ("kind", "mask"), [("pivoted", "pivot_mask"), ("sparse_dictionary", "mask")]
)
def test_a_mask_with_too_many_bits(saved, tmp_path, kind, mask):
    copy = shutil.copytree(saved["llama", kind].directory, tmp_path / "copy")
    name = f"model.layers.0.mlp.up_proj.{mask}"
    rewrite(copy, lambda tensors: tensors[name].fill_(255))
    with pytest.raises(CheckpointError, match=name):
        load(copy)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file(copied, keep):
    whole = (copied / WEIGHTS).read_bytes()
    (copied / WEIGHTS).write_bytes(whole[:keep])
    with pytest.raises(CheckpointError, match=WEIGHTS):
        load(copied)


def test_a_file_that_is_no_safetensors(copied):
    (copied / WEIGHTS).write_bytes(b"\xff" * 2000)
    with pytest.raises(CheckpointError, match=WEIGHTS):
        load(copied)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model_type": 3}', '{"model_type": "xyz"}'])
def test_a_damaged_config(copied, text):
    (copied / "config.json").write_text(text)
    with pytest.raises(CheckpointError):
        load(copied)


@pytest.fixture
def dense(tmp_path) -> Path:
    tiny_llama().save_pretrained(tmp_path / "dense")
    return tmp_path / "dense"


def edit_config(directory: Path, **values: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"dtype": "float8_e4m3fn"}, ModelError, "'dtype' is 'float8_e4m3fn' in config.json"),
        ({"torch_dtype": "int8"}, ModelError, "expected one of float32, bfloat16"),
        ({"compression_config": {"quant_method": "x"}}, ModelError, "quantized .x."),
        (
            {"text_config": {"quantization_config": {"quant_method": "mxfp4"}}},
            ModelError,
            "quantized .mxfp4.",
        ),
        ({"hidden_size": 10**6}, CheckpointError, "'hidden_size' is 1000000 .* bytes"),
        ({"vocab_size": 10**11}, CheckpointError, "'vocab_size' is 100000000000"),
        ({"num_key_value_heads": 10**9}, CheckpointError, "'num_key_value_heads' is"),
        ({"num_labels": 10**9}, CheckpointError, "'num_labels' is 1000000000"),
    ],
)
def test_configs_that_would_fail_late(dense, values, error, message):
    edit_config(dense, **values)
    with pytest.raises(error, match=message):
        load(dense)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.bool])
def test_weights_that_are_no_floats_need_a_quantization_config(dense, dtype):
    name = "model.layers.0.mlp.up_proj.weight"
    rewrite(dense, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    with pytest.raises(ModelError, match=f"holds {name} as "):
        load(dense)


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "tokenizer.json"])
def test_pointers_of_git_lfs(dense, name):
    (dense / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(CheckpointError, match=f"{name} is a pointer of Git LFS.*git lfs pull"):
        load(dense)


def test_a_gguf_file_in_a_directory_is_named(dense):
    (dense / WEIGHTS).rename(dense / "model.gguf")
    with pytest.raises(CheckpointError, match=r"give the GGUF file: .*model\.gguf"):
        load(dense)


def test_whole_weights_are_read_before_shards_as_by_transformers(dense):
    (dense / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b"}}')
    shutil.copyfile(dense / WEIGHTS, dense / "consolidated.safetensors")
    assert weight_files(dense) == [dense / WEIGHTS]
    load(dense)


def test_shards(tmp_path):
    model = tiny_gqa()
    options = SaveOptions(max_shard_size="40KB")
    directory = save_compressed(
        model, None, tmp_path / "a", compress(model, "lowrank"), options
    )
    index = directory / "model.safetensors.index.json"
    text = json.loads(index.read_text())
    first = sorted(set(text["weight_map"].values()))[0]
    (directory / first).rename(directory / "aside")
    with pytest.raises(CheckpointError, match=first):
        load(directory)
    text["weight_map"] = {"a": "../../secret.safetensors"}
    index.write_text(json.dumps(text))
    with pytest.raises(CheckpointError, match="outside"):
        load(directory)


def test_what_is_no_model_directory(tmp_path):
    with pytest.raises(InputError, match="no directory"):
        load(tmp_path / "missing")
    with pytest.raises(InputError, match="no directory"):
        load(str(tmp_path / "missing"))
    with pytest.raises(InputError, match=r"config\.json"):
        load(tmp_path)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(InputError, match="is a file"):
        load(file)


def test_pickles_are_refused(copied):
    (copied / WEIGHTS).rename(copied / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickle"):
        load(copied)
    (copied / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match="no safetensors"):
        load(copied)


def test_a_broken_tokenizer(copied):
    (copied / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="tokenizer"):
        load(copied)


def test_remote_code_does_not_run_unasked(tmp_path):
    tiny_llama().save_pretrained(tmp_path)
    text = json.loads((tmp_path / "config.json").read_text())
    text |= {"model_type": "mine", "auto_map": {"AutoConfig": "evil.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(text))
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(CheckpointError, match="trust_remote_code"):
        load(tmp_path)


def test_the_hub_out_of_reach(monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError("We couldn't connect to the Hub.\nMore lines.")

    module = sys.modules[load.__module__]
    monkeypatch.setattr(module, "_check_hub", lambda *given: CAUSAL)  # which asks the Hub first
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", no_network)
    with pytest.raises(InputError, match="someone/something") as caught:
        load("someone/something")
    assert "\n" not in str(caught.value)


def test_without_the_plug_in_transformers_stops(copied, monkeypatch):
    monkeypatch.delitem(auto.AUTO_QUANTIZATION_CONFIG_MAPPING, "spectrim")
    with pytest.raises(ValueError, match="`import spectrim` before from_pretrained"):
        AutoModelForCausalLM.from_pretrained(copied)


def test_without_the_sentence_transformers_only_warns(copied, monkeypatch):
    """Why `load` exists, and why configs of compressed models carry a sentence."""
    path = copied / "config.json"
    config = json.loads(path.read_text())
    del config[GUARD]
    path.write_text(json.dumps(config))
    monkeypatch.delitem(auto.AUTO_QUANTIZATION_CONFIG_MAPPING, "spectrim")
    _, info = AutoModelForCausalLM.from_pretrained(copied, output_loading_info=True)
    assert info["missing_keys"]


@pytest.mark.parametrize("name", BUNDLED)
def test_the_bundled_models_have_names(copied, monkeypatch, name):
    module = sys.modules[load.__module__]
    monkeypatch.setattr(module, "ASSETS", copied.parent)
    with pytest.raises(InputError, match=f"no {name} model"):
        load(name)
    copied.rename(copied.with_name(name))
    model, tokenizer = load(name)
    assert model.config.model_type == "llama"
    assert tokenizer is not None
