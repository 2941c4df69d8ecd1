"""State-space models are compressed, refined, saved and loaded like others."""

from __future__ import annotations

import copy

import pytest
import torch

from spectrim.checkpoint import load, save_compressed
from spectrim.refinement import REFINEMENTS, TrainingInputs, required_statistics
from spectrim.runtime.context import RunContext
from tests.checkpoint.compressing import compress
from tests.contracts.test_refinements import same, state, statistics, tokens
from tests.tiny_models import tiny_mamba, tiny_mamba2, tiny_tokenizer, tiny_tokens

MODELS = {"mamba": tiny_mamba, "mamba2": tiny_mamba2}
OPTIONS = {
    "block_distillation": {"epochs": 4, "optimizer": "kfac_adamw"},
    "distillation": {"tokens": 512},
    "welore": {"steps": 8, "batch_size": 8, "learning_rate": 3e-3},
    "sst": {"steps": 8, "batch_size": 8, "vectors": 2, "interval": 4, "learning_rate": 3e-3},
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", OPTIONS)
def test_refined_saved_and_loaded(model, name, tmp_path):
    original = MODELS[model]()
    compressed = copy.deepcopy(original)
    config = compress(compressed, "lowrank")
    assert len(config.layers) >= 4, "both blocks have layers"
    given = OPTIONS[name]
    required = required_statistics(name, given)
    found = statistics(original, required) if required else None
    inputs = TrainingInputs(original, compressed, tokens(), found)
    options = REFINEMENTS.options(name, given)
    stages = REFINEMENTS.get(name).refine(inputs, options, RunContext())
    for losses in stages.values():
        assert losses[-1] < losses[0], stages
    save_compressed(compressed, tiny_tokenizer(), tmp_path / "saved", config)
    loaded = load(tmp_path / "saved")[0]
    assert same(state(loaded), state(compressed))
    with torch.no_grad():
        ids = tiny_tokens()
        assert torch.equal(loaded(ids).logits, compressed(ids).logits)
