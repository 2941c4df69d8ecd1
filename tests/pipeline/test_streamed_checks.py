"""What is seen of a whole model before it is calibrated is seen of one on disk as well."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, RwkvConfig

from spectrim.checkpoint.save_sharded import open_streamed
from spectrim.errors import ModelError, NumericalWarning
from spectrim.models.offload import StreamedModel
from spectrim.models.usage import READ, Usage, observe_usage
from spectrim.pipeline.inputs import prepare
from spectrim.pipeline.plan import factorize
from spectrim.pipeline.recipe import Recipe
from spectrim.runtime.cache import Cache
from spectrim.runtime.context import RunContext
from tests.models.test_causality import tiny_bert
from tests.runs import small_recipe, text_file
from tests.tiny_models import TINY_MODELS, tiny_llama, tiny_mamba, tiny_tokenizer

OWN_CODE = """
from torch.nn.functional import linear
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP


class OwnMLP(LlamaMLP):
    def forward(self, x):
        hidden = self.act_fn(self.gate_proj(x)) * self.up_proj(x)
        BODY


class OwnConfig(LlamaConfig):
    model_type = "reads_weights"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp.__class__ = OwnMLP
"""
CALLS = "self.down_proj(hidden)"
READS = "return linear(hidden, self.down_proj.weight)"
ONE_TOKEN = f"return {CALLS} if x.shape[1] > 1 else linear(hidden, self.down_proj.weight)"
FOR_DTYPE = "return self.down_proj(hidden.to(self.down_proj.weight.dtype))"
REWRITES = f"self.down_proj.weight.mul_(2 - self.training); return {CALLS}"
DOWN = [f"model.layers.{n}.mlp.down_proj" for n in range(2)]


def opened(model, place: Path) -> StreamedModel:
    model.save_pretrained(place)
    tiny_tokenizer().save_pretrained(place)
    return open_streamed(place).streamed


@pytest.fixture
def with_code(tmp_path, monkeypatch):
    """A checkpoint whose own code ends its MLPs with `body`."""
    cache = str(tmp_path / "modules")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", cache)

    def make(body: str) -> StreamedModel:
        place = tmp_path / f"own{abs(hash(body))}"
        tiny_llama().save_pretrained(place)
        tiny_tokenizer().save_pretrained(place)
        (place / "modeling_own.py").write_text(OWN_CODE.replace("BODY", body))
        config = json.loads((place / "config.json").read_text())
        names = {"AutoConfig": "OwnConfig", "AutoModelForCausalLM": "OwnForCausalLM"}
        config["model_type"] = "reads_weights"
        config["auto_map"] = {auto: f"modeling_own.{name}" for auto, name in names.items()}
        (place / "config.json").write_text(json.dumps(config))
        return open_streamed(place, trust_remote_code=True).streamed

    return make


@pytest.mark.few(2)
@pytest.mark.parametrize("name", sorted(TINY_MODELS))
def test_ordinary_models_are_run_with_one_block_in_memory(name, tmp_path):
    source = opened(TINY_MODELS[name](), tmp_path / "m")
    most, load = 0, source.load

    def counted(part: str) -> None:
        nonlocal most
        load(part)
        blocks = [source.model.get_submodule(block) for block in source.blocks]
        most = max(most, sum(not next(b.parameters()).is_meta for b in blocks))

    source.load = counted  # type: ignore[method-assign]
    assert observe_usage(source) == Usage()
    assert most == 1
    assert all(parameter.is_meta for parameter in source.model.parameters())


def test_attention_to_both_sides_is_refused(tmp_path):
    source = opened(tiny_bert(False), tmp_path / "m")
    recipe = small_recipe(text_file(tmp_path / "text.txt"))
    with pytest.raises(ModelError, match="BertLMHeadModel is not causal"):
        factorize(source, tiny_tokenizer(), recipe, RunContext(Cache(tmp_path / "cache")))
    assert prepare(opened(tiny_bert(True), tmp_path / "causal"), Recipe()).dense == {}


@pytest.mark.parametrize(
    ("body", "dense"),
    [(READS, DOWN), (ONE_TOKEN, []), (FOR_DTYPE, [])],
    ids=["reads", "reads one token", "reads the dtype"],
)
def test_layers_whose_weight_is_read_stay_dense(with_code, tmp_path, body, dense):
    source = with_code(body)
    assert observe_usage(source).unusable == dict.fromkeys(dense, READ)
    if not dense:
        return
    recipe = small_recipe(text_file(tmp_path / "text.txt"))
    context = RunContext(Cache(tmp_path / "cache"))
    for _ in range(2):  # the second time from the cache
        with pytest.warns(NumericalWarning, match=rf"{DOWN[0]}.*{READ}"):
            found = factorize(source, tiny_tokenizer(), recipe, context)
        assert found.provenance["dense"] == dict.fromkeys(dense, READ)
        assert not set(dense) & set(found.shapes)


def test_weights_that_are_rewritten_are_refused(with_code):
    with pytest.raises(ModelError, match=rf"rewrites weights as it runs \({DOWN[0]}"):
        observe_usage(with_code(REWRITES))


def test_reads_are_those_of_the_whole_model(tmp_path):
    whole = observe_usage(tiny_mamba())
    assert whole.unusable
    assert observe_usage(opened(tiny_mamba(), tmp_path / "m")) == whole


def test_writes_from_outside_a_block_are_refused(tmp_path):
    """RWKV divides the weights of its blocks before they run, which is lost on disk."""
    sizes = {"vocab_size": 128, "hidden_size": 32, "attention_hidden_size": 32}
    config = RwkvConfig(**sizes, num_hidden_layers=2, context_length=64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ModelError, match="rewrites weights as it runs"):
        observe_usage(opened(model, tmp_path / "m"))
