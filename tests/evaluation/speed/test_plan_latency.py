"""A plan by time takes the time that it says."""

from __future__ import annotations

import json

import pytest
import torch

from spectrim.evaluation.speed import random_model
from spectrim.evaluation.speed.plan_latency import time_plan
from tests.tolerances import LATENCY_RELATIVE


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Layers of half a megabyte and more: their time is that of reading them."""
    place = tmp_path_factory.mktemp("shape") / "config.json"
    sizes = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6}
    more = {"num_attention_heads": 6, "vocab_size": 64}
    place.write_text(json.dumps({"model_type": "llama"} | sizes | more))
    return random_model(str(place), torch.float32, torch.device("cpu"))


@pytest.mark.slow
def test_predicted_and_measured_time_of_a_plan_agree(model):
    found = time_plan(model, 0.8)
    assert found.predicted <= 0.8 + 1e-3
    assert found.dense_layers < found.layers == 42
    assert abs(found.measured - found.predicted) <= LATENCY_RELATIVE * found.predicted
