"""State-space models are compressed, refined, saved and loaded like others."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import PreTrainedModel

from spectrim.checkpoint import SpectrimConfig, load, save_compressed
from spectrim.models.targets import find_targets
from spectrim.refinement import REFINEMENTS, TrainingInputs, required_statistics
from spectrim.runtime.context import RunContext
from tests.adapters.building import adapted, logits, moved, trained
from tests.checkpoint.compressing import replace_by_svd
from tests.contracts.test_refinements import same, state, statistics, tokens
from tests.tiny_models import tiny_mamba, tiny_mamba2, tiny_tokenizer, tiny_tokens
from tests.tolerances import MERGED_ABSOLUTE

MODELS = {"mamba": tiny_mamba, "mamba2": tiny_mamba2}
OPTIONS = {
    "block_distillation": {"epochs": 4, "optimizer": "kfac_adamw", "learning_rate": 5e-3},
    "distillation": {"tokens": 1024, "learning_rate": 5e-3},
    "welore": {"steps": 8, "batch_size": 8, "learning_rate": 3e-3},
    "sst": {"steps": 8, "batch_size": 8, "vectors": 2, "interval": 4, "learning_rate": 3e-3},
}


def compress(model: PreTrainedModel) -> SpectrimConfig:
    """Factor the layers that are called; Mamba reads the time steps' projection."""
    found = [t.name for t in find_targets(model) if not t.name.endswith("dt_proj")]
    assert len(found) >= 4, "both blocks have layers"
    for name in found:
        replace_by_svd(model, name, "lowrank", 6)
    return SpectrimConfig({name: {"kind": "lowrank", "rank": 6} for name in found})


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", OPTIONS)
def test_refined_saved_and_loaded(model, name, tmp_path):
    original = MODELS[model]()
    compressed = copy.deepcopy(original)
    config = compress(compressed)
    given = OPTIONS[name]
    required = required_statistics(name, given)
    found = statistics(original, required) if required else None
    inputs = TrainingInputs(original, compressed, tokens(), found)
    options = REFINEMENTS.options(name, given)
    stages = REFINEMENTS.get(name).refine(inputs, options, RunContext())
    for losses in stages.values():
        quarter = len(losses) // 4
        assert sum(losses[-quarter:]) < sum(losses[:quarter]), stages
    save_compressed(compressed, tiny_tokenizer(), tmp_path / "saved", config)
    loaded = load(tmp_path / "saved")[0]
    assert same(state(loaded), state(compressed))
    with torch.no_grad():
        ids = tiny_tokens()
        assert torch.equal(loaded(ids).logits, compressed(ids).logits)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", ["pissa", "svfit", "soka"])
def test_adapters_are_merged_to_what_they_were(model, name):
    """No adapter is put where the model reads a weight instead of calling its layer."""
    made = moved(adapted(name, MODELS[model]()))
    assert not any("dt_proj" in key for key in trained(made))
    assert any("in_proj" in key for key in trained(made))
    expected = logits(made)
    merged = made.merge_and_unload()
    torch.testing.assert_close(logits(merged), expected, atol=MERGED_ABSOLUTE, rtol=0)
