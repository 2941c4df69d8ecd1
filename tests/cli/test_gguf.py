"""GGUF files as input: read, dequantized, compressed; damaged ones in one line."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from spectrim.checkpoint import load
from spectrim.checkpoint.load import stored_dtype
from spectrim.errors import CheckpointError, InputError
from tests.cli.conftest import SMALL
from tests.runs import text_file

WIDTH, INNER, HEADS, LAYERS = 32, 64, 4, 2
LETTERS = [chr(code) for code in range(33, 127)]
TOKENS = ["<unk>", "<s>", "</s>", *LETTERS, "Ġ", "th", "Ċ"]
NORMAL, CONTROL = 1, 3


def write_gguf(path: Path, seed: int = 0) -> Path:
    """Write a tiny Llama whose matrices are stored in 8 bits."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([CONTROL] * 3 + [NORMAL] * (len(TOKENS) - 3))
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    draw = np.random.default_rng(seed)

    def add(name: str, *shape: int) -> None:
        if len(shape) == 1:
            writer.add_tensor(name, np.ones(shape, np.float32))
            return
        values = draw.normal(0, 0.2, shape).astype(np.float32)
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    add("token_embd.weight", len(TOKENS), WIDTH)
    add("output.weight", len(TOKENS), WIDTH)
    add("output_norm.weight", WIDTH)
    for number in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{number}.{name}.weight", WIDTH, WIDTH)
        for name in ("ffn_gate", "ffn_up"):
            add(f"blk.{number}.{name}.weight", INNER, WIDTH)
        add(f"blk.{number}.ffn_down.weight", WIDTH, INNER)
        for name in ("attn_norm", "ffn_norm"):
            add(f"blk.{number}.{name}.weight", WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_weights_are_the_dequantized_ones(file):
    with pytest.warns(UserWarning, match="dequantized"):
        model, tokenizer = load(file)
    read = {tensor.name: tensor for tensor in gguf.GGUFReader(str(file)).tensors}
    down = read["blk.1.ffn_down.weight"]
    expected = torch.from_numpy(gguf.quants.dequantize(down.data, down.tensor_type))
    found = model.get_submodule("model.layers.1.mlp.down_proj").weight
    assert torch.equal(found.detach().float(), expected)
    assert tokenizer.decode(tokenizer("the", add_special_tokens=False).input_ids) == "the"
    assert stored_dtype(file) == torch.bfloat16


def test_a_gguf_file_is_compressed_to_a_directory(cli, file, tmp_path):
    text = text_file(tmp_path / "text.txt")
    made = cli(
        *("compress", file, "-o", tmp_path / "made", "--data", text, *SMALL),
        *("--budget", "0.7", "--no-cache", "--no-report"),
    )
    assert made.code == 0, made.err
    assert "dequantized" in made.err
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "made")
    assert model.dtype == torch.bfloat16
    assert model.config.quantization_config.layers


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not one of them"])
def test_damaged_files_are_named_in_one_line(content, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.gguf") as error:
        load(path)
    assert "\n" not in str(error.value)


def test_the_missing_package_is_named(file, monkeypatch):
    monkeypatch.setattr("spectrim.checkpoint.gguf.is_gguf_available", lambda: False)
    with pytest.raises(InputError, match="pip install gguf"):
        load(file)
