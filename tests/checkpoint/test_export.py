from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from spectrim.checkpoint import export_dense, export_self_contained, load, save_compressed
from spectrim.checkpoint.config import SpectrimConfig
from spectrim.checkpoint.export.self_contained import remote_code
from spectrim.errors import CheckpointError, InputError
from spectrim.layers import LAYERS
from tests.checkpoint.compressing import KINDS, compress, logits, replace_by_svd
from tests.tiny_models import TINY_MODELS, tiny_llama, tiny_moe, tiny_tied
from tests.tolerances import DENSE_EXPORT_ABSOLUTE

CASES = [(name, kind) for name in TINY_MODELS for kind in KINDS]


@pytest.mark.few(6)
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_dense_export_is_the_original_architecture(saved, case, tmp_path):
    out = export_dense(saved[case].directory, tmp_path / "dense")
    model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info.values())
    difference = (logits(model) - saved[case].logits).abs().max()
    assert difference <= DENSE_EXPORT_ABSOLUTE
    original = TINY_MODELS[case[0]]()
    assert {n: p.shape for n, p in model.named_parameters()} == {
        n: p.shape for n, p in original.named_parameters()
    }
    text = json.loads((out / "config.json").read_text())
    assert "quantization_config" not in text
    assert text["architectures"] == [type(original).__name__]
    assert (out / "tokenizer.json").is_file()


def test_dense_export_names_tensors_like_the_original(saved, tmp_path):
    """Experts are one tensor per expert on disk, under the original checkpoint's names."""
    tiny_moe().save_pretrained(tmp_path / "original")
    out = export_dense(saved["moe", "lowrank"].directory, tmp_path / "dense")
    assert tensor_names(out) == tensor_names(tmp_path / "original")


def tensor_names(directory) -> set[str]:
    from safetensors import safe_open

    with safe_open(directory / "model.safetensors", "pt") as file:
        return set(file.keys())


def test_dense_export_of_an_untied_head(tmp_path):
    model = tiny_tied()
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    replace_by_svd(model, "lm_head", "pivoted", 8)
    config = SpectrimConfig({"lm_head": {"kind": "pivoted", "rank": 8}}, untied=True)
    save_compressed(model, None, tmp_path / "a", config)
    dense, _ = load(export_dense(tmp_path / "a", tmp_path / "b"))
    assert (logits(dense) - logits(model)).abs().max() <= DENSE_EXPORT_ABSOLUTE


def test_bfloat16_stays(tmp_path):
    model = tiny_moe().to(torch.bfloat16)
    save_compressed(model, None, tmp_path / "a", compress(model, "pivoted"))
    dense, _ = load(export_dense(tmp_path / "a", tmp_path / "b"))
    assert {p.dtype for p in dense.parameters()} == {torch.bfloat16}


def test_an_export_may_be_repeated(saved, tmp_path):
    source = saved["llama", "lowrank"].directory
    for export in (export_dense, export_self_contained):
        export(source, tmp_path / "a", overwrite=True)
        with pytest.raises(InputError, match="overwrite"):
            export(source, tmp_path / "a")


@pytest.mark.parametrize("export", [export_dense, export_self_contained])
def test_only_compressed_checkpoints_are_exported(export, tmp_path):
    tiny_llama().save_pretrained(tmp_path / "a")
    with pytest.raises(CheckpointError, match="not compressed"):
        export(tmp_path / "a", tmp_path / "b")
    with pytest.raises(InputError):
        export(tmp_path / "missing", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_self_contained_export_keeps_the_architecture(saved, tmp_path):
    out = export_self_contained(saved["gpt2", "pivoted"].directory, tmp_path / "a")
    text = json.loads((out / "config.json").read_text())
    assert text["architectures"] == ["GPT2LMHeadModel"]
    assert set(text["auto_map"]) == {"AutoConfig", "AutoModelForCausalLM"}
    model, tokenizer = load(out)  # with spectrim no remote code is needed
    assert torch.equal(logits(model), saved["gpt2", "pivoted"].logits)
    assert tokenizer is not None


@pytest.mark.parametrize("kind", LAYERS.names())
def test_the_code_of_every_kind_stands_alone(kind):
    code = remote_code([kind])
    assert "from spectrim" not in code
    assert "from_factors" not in code
    assert "import spectrim" not in code
    compile(code, "modeling_spectrim", "exec")
