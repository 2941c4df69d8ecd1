"""PEFT adapters merged into their base: alone, beside their model, and damaged."""

from __future__ import annotations

import json

import pytest
import torch

from spectrim.checkpoint import adapter_base, is_adapter, load_merged
from spectrim.errors import CheckpointError, InputError, ModelError
from tests.tiny_models import tiny_llama, tiny_t5, tiny_tokenizer, tiny_tokens
from tests.tolerances import FULL_RANK_ABSOLUTE

peft = pytest.importorskip("peft")


def adapt(model, directory, base, **options):
    """Save an adapter with random weights; return the logits of the adapted model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        given = {"r": 2, "init_lora_weights": False} | options
        adapted = peft.get_peft_model(model, peft.LoraConfig(**given))
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(directory)
    ids = tiny_tokens()
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return adapted.eval()(input_ids=ids, **more).logits


@pytest.fixture
def base(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


CAUSAL = {"target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}


@torch.no_grad()
def test_an_adapter_alone(base, tmp_path):
    expected = adapt(tiny_llama(), tmp_path / "adapter", base, **CAUSAL)
    assert is_adapter(tmp_path / "adapter")
    assert not is_adapter(base)
    assert adapter_base(tmp_path / "adapter") == str(base)
    model, tokenizer = load_merged(tmp_path / "adapter")
    found = model(tiny_tokens()).logits
    assert torch.allclose(found, expected, atol=FULL_RANK_ABSOLUTE)
    assert not torch.allclose(found, tiny_llama()(tiny_tokens()).logits, atol=1e-2)
    assert tokenizer is not None, "the base's"
    assert type(model) is type(tiny_llama())


@torch.no_grad()
def test_an_adapter_beside_its_model(base):
    expected = adapt(tiny_llama(), base, "someone/else", **CAUSAL)
    assert adapter_base(base) != str(base)
    model, _ = load_merged(base)
    assert torch.allclose(model(tiny_tokens()).logits, expected, atol=FULL_RANK_ABSOLUTE)


@torch.no_grad()
def test_an_adapter_of_an_encoder_decoder(tmp_path):
    tiny_t5().save_pretrained(tmp_path / "base")
    options = {"target_modules": ["q", "v"], "task_type": "SEQ_2_SEQ_LM"}
    expected = adapt(tiny_t5(), tmp_path / "adapter", tmp_path / "base", **options)
    model, _ = load_merged(tmp_path / "adapter")
    found = model(input_ids=tiny_tokens(), decoder_input_ids=tiny_tokens()).logits
    assert torch.allclose(found, expected, atol=FULL_RANK_ABSOLUTE)


def test_what_is_no_adapter_and_damaged_ones(base, tmp_path):
    with pytest.raises(InputError, match="is no directory of a PEFT adapter"):
        load_merged(base)
    place = tmp_path / "adapter"
    adapt(tiny_llama(), place, base, **CAUSAL)
    config = json.loads((place / "adapter_config.json").read_text())

    def rewrite(**changes):
        (place / "adapter_config.json").write_text(json.dumps(config | changes))

    rewrite(base_model_name_or_path=None)
    with pytest.raises(CheckpointError, match="names no base_model_name_or_path"):
        load_merged(place)
    rewrite(base_model_name_or_path="./nowhere")
    with pytest.raises(InputError, match="no directory"):
        load_merged(place)
    rewrite(megatron_config={"a": 1})
    with pytest.raises(ModelError, match="Megatron"):
        load_merged(place)
    rewrite(layer_replication=[[0, 2], [0, 2]])
    with pytest.raises(ModelError, match="repeats layers of its base"):
        load_merged(place)
    rewrite(r=3)
    with pytest.raises(CheckpointError):
        load_merged(place)
    (place / "adapter_model.safetensors").rename(place / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="safetensors"):
        load_merged(place)
