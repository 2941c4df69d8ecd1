"""Adapters beside a quantised base: it stays to the bit, and what is saved loads again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from spectrim.checkpoint import export_dense, export_self_contained, load, save_compressed
from spectrim.errors import InputError, ModelError
from spectrim.layers.quantized import CompensatedLinear, CompressedLinear
from spectrim.pipeline.finetune import QUANTIZED_BASES, FinetuneSettings, finetune
from spectrim.runtime.cache import Cache
from spectrim.runtime.context import RunContext
from tests.checkpoint.test_fresh_process import WITHOUT_SPECTRIM, run
from tests.pipeline.test_finetune import QUICK, small
from tests.runs import MetricLog, text_file
from tests.tiny_models import tiny_tokenizer, tiny_tokens
from tests.tolerances import DENSE_EXPORT_ABSOLUTE


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    return text_file(tmp_path_factory.mktemp("text") / "text.txt")


def settings(text, base: str | None = "nf4", **changes) -> FinetuneSettings:
    given = {"lora": 3, "learning_rate": 1e-2, **QUICK, **changes}
    return FinetuneSettings(data=str(text), quantize_base=base, **given)


def codes(model) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{own}": buffer.clone()
        for name, module in model.named_modules()
        if isinstance(module, CompressedLinear)
        for own, buffer in module.named_buffers()
    }


def saved(model, place):
    save_compressed(model, None, place, model.config.quantization_config)
    return load(place, dtype=torch.float32)[0]


@torch.no_grad()
def logits(model):
    return model(tiny_tokens()).logits.float()


@pytest.mark.few(1)
@pytest.mark.parametrize("base", QUANTIZED_BASES)
@pytest.mark.parametrize(("model", "kind"), [("llama", "lowrank"), ("moe", "pivoted")])
def test_adapters_learn_and_are_loaded(model, kind, base, text, tmp_path):
    made = small(kind, model)
    log = MetricLog()
    context = RunContext(log_metrics=log)
    tuned = finetune(made, tiny_tokenizer(), settings(text, base), context)
    [losses] = log.series.values()
    assert sum(losses[-3:]) < sum(losses[:3])
    config = tuned.config.quantization_config
    assert config.inner["base"] == {"int4": "rtn", "nf4": "nf4"}[base]
    assert config.inner["adapters"] == 3
    assert all(p.requires_grad for p in tuned.parameters())
    again = saved(tuned, tmp_path / "out")
    assert torch.equal(logits(again), logits(tuned))
    assert torch.equal(logits(saved(again, tmp_path / "twice")), logits(tuned))
    export_dense(tmp_path / "out", tmp_path / "dense")
    dense = load(tmp_path / "dense", dtype=torch.float32)[0]
    assert (logits(dense) - logits(tuned)).abs().max() <= 10 * DENSE_EXPORT_ABSOLUTE


@pytest.mark.slow
def test_what_is_trained_later_goes_on_with_the_same_base(text, tmp_path):
    tuned = finetune(small("lowrank"), tiny_tokenizer(), settings(text))
    before, held = codes(tuned), logits(tuned)
    again = saved(tuned, tmp_path / "out")
    finetune(again, tiny_tokenizer(), settings(text, None))
    after = codes(again)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(logits(again), held)
    assert len(again.config.quantization_config.provenance["refinement"]) == 2
    with pytest.raises(ModelError, match="rank 3"):
        finetune(again, tiny_tokenizer(), settings(text, None, lora=2))
    with pytest.raises(ModelError, match="already"):
        finetune(again, tiny_tokenizer(), settings(text))
    with pytest.raises(ModelError, match="--lora 8"):
        finetune(again, tiny_tokenizer(), settings(text, None, lora=None))


@pytest.mark.slow
def test_layers_left_dense_get_a_path(text, tmp_path):
    made = small("lowrank")
    name, entry = next(iter(made.config.quantization_config.layers.items()))
    weight, _ = made.get_submodule(name).dense()
    made.set_submodule(name, torch.nn.Linear(*reversed(weight.shape), bias=False))
    made.config.quantization_config.layers.pop(name)
    tuned = finetune(made, tiny_tokenizer(), settings(text))
    layer = tuned.get_submodule(name)
    assert isinstance(layer, CompensatedLinear)
    assert layer.rank == 3
    assert tuned.config.quantization_config.layers[name]["rank"] == 3 != entry["rank"]
    assert torch.equal(logits(saved(tuned, tmp_path / "out")), logits(tuned))


@pytest.mark.slow
def test_one_file_of_code_loads_it(text, tmp_path):
    tuned = finetune(small("lowrank"), tiny_tokenizer(), settings(text, steps=2))
    saved(tuned, tmp_path / "out")
    export_self_contained(tmp_path / "out", tmp_path / "alone")
    [alone] = run(
        tmp_path, WITHOUT_SPECTRIM, [tmp_path / "alone"], trust_remote_code=True
    ).values()
    assert torch.equal(alone, logits(tuned))


def test_a_run_is_kept_by_its_base(text, tmp_path):
    """The same text and options on another base are another run."""
    cache = Cache(tmp_path / "kept")
    found = []
    for base in ("nf4", "nf4", "int4"):
        progress = RunContext(cache)
        tuned = finetune(
            small("lowrank"), tiny_tokenizer(), settings(text, base, steps=3), progress
        )
        found.append(logits(tuned))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert len(list((tmp_path / "kept").rglob("*.safetensors"))) >= 2


def test_an_error_leaves_the_base_as_it_was(text):
    made = finetune(small("lowrank"), tiny_tokenizer(), settings(text, steps=2))
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}

    def broken(items, what, total):
        for item in items:
            yield item
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(made, tiny_tokenizer(), settings(text, None), RunContext(progress=broken))
    after = made.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_settings_that_do_not_go_together(text):
    with pytest.raises(InputError, match="--lora 8"):
        settings(text, lora=None)
    with pytest.raises(ValueError, match="'int4' or 'nf4'"):
        settings(text, "int3")
