from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from spectrim.errors import ModelError
from spectrim.models.copying import deep_copy
from spectrim.pipeline.replace import cast_for_saving, shared_copy
from tests.tiny_models import tiny_llama, tiny_tokens


def computed(model: nn.Module) -> torch.Tensor:
    return model(tiny_tokens()).logits


@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: [t], lambda t: {"state": (t,)}])
def test_results_kept_on_a_module_are_copied_as_values(wrap):
    model = tiny_llama()
    model.model.layers[0].kept = wrap(computed(model))
    copied = shared_copy(model)
    assert copied.lm_head.weight is model.lm_head.weight
    assert torch.equal(computed(copied), computed(model))
    assert cast_for_saving(model, torch.bfloat16).dtype == torch.bfloat16


def test_the_copy_of_a_result_is_apart():
    model = tiny_llama()
    model.kept = computed(model)
    copied = deep_copy(model)
    assert torch.equal(copied.kept, model.kept)
    assert copied.kept.data_ptr() != model.kept.data_ptr()
    assert not copied.kept.requires_grad


def test_what_cannot_be_copied_is_one_line():
    model = tiny_llama()
    model.lock = threading.Lock()
    with pytest.raises(ModelError, match="LlamaForCausalLM holds an attribute"):
        shared_copy(model)
