"""Plain LoRAs in llama.cpp's own format, written by its script.

Runs where SPECTRIM_LLAMA_CPP names a clone of llama.cpp; its sources are enough, nothing is
built.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from spectrim.adapters import save_lora, to_lora
from spectrim.adapters._tuner import spectral_layers
from tests.adapters.building import NAMES, adapted, moved
from tests.tiny_models import TINY_MODELS
from tests.tolerances import MERGED_ABSOLUTE

pytestmark = pytest.mark.slow
PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@pytest.fixture(scope="module")
def script() -> Path:
    clone = os.environ.get("SPECTRIM_LLAMA_CPP")
    if clone is None:
        pytest.skip("SPECTRIM_LLAMA_CPP names no clone of llama.cpp")
    return Path(clone) / "convert_lora_to_gguf.py"


def turned(update: Tensor, heads: int) -> Tensor:
    """Rows of queries and keys as llama.cpp pairs them for its rotary embedding."""
    return update.view(heads, 2, -1, update.shape[1]).transpose(1, 2).reshape(update.shape)


@pytest.mark.parametrize("name", NAMES)
def test_the_script_takes_every_export(name, script, tmp_path):
    gguf = pytest.importorskip("gguf", reason="needs gguf, of llama.cpp")
    base = TINY_MODELS["gqa"]()
    base.save_pretrained(tmp_path / "base")
    config = base.config
    model = moved(adapted(name, base))
    save_lora(to_lora(model), tmp_path / "lora")
    written = tmp_path / "lora.gguf"
    command = [sys.executable, str(script), "--base", str(tmp_path / "base")]
    command += ["--outtype", "f32", "--outfile", str(written), str(tmp_path / "lora")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    reader = gguf.GGUFReader(written)
    assert reader.get_field("general.type").contents() == "adapter"
    alpha = reader.get_field("adapter.lora.alpha").contents()
    found = {t.name: torch.from_numpy(t.data.copy()) for t in reader.tensors}
    assert len(found) == 2 * len(list(spectral_layers(model)))
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for place, layer in spectral_layers(model):
        number, part = place.split(".layers.")[1].split(".", 1)
        key = f"blk.{number}.{PARTS[part]}.weight"
        down, up = found[f"{key}.lora_a"], found[f"{key}.lora_b"]
        update = layer.get_delta_weight("default").detach()
        if PARTS[part] in heads:
            update = turned(update, heads[PARTS[part]])
        product = alpha / len(down) * (up @ down)
        torch.testing.assert_close(product, update, atol=MERGED_ABSOLUTE, rtol=0)
