"""Blocks are run one by one only where that gives what the whole model gives."""

from __future__ import annotations

import pytest
import torch

from spectrim.data import TokenBlocks
from spectrim.errors import ModelError
from spectrim.training.forward import BlockRunner, Tokens
from tests.families.configs import FAMILIES
from tests.tiny_models import TINY_MODELS, tiny_tokens


def tokens() -> Tokens:
    blocks = TokenBlocks(tiny_tokens(2, 12), None, "", "", 1)
    return Tokens(blocks, torch.device("cpu"), "float32")


@pytest.mark.parametrize("name", sorted(TINY_MODELS))
def test_ordinary_models_are_run_block_by_block(name):
    assert len(BlockRunner(TINY_MODELS[name](), tokens()).blocks) == 2


@pytest.mark.parametrize("name", ["gemma3n_text", "hrm_text"])
def test_more_than_one_hidden_state_is_refused(name):
    model = next(family for family in FAMILIES if str(family) == name).build()
    with pytest.raises(ModelError, match=r"more than one hidden state.*distillation"):
        BlockRunner(model, tokens())
