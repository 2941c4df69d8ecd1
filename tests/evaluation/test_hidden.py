"""Figures of hidden states: a slow twin, padding, and what cannot be measured."""

from __future__ import annotations

import dataclasses
from statistics import fmean

import pytest
import torch
from torch import nn

from spectrim.data import BlockSettings, TokenBlocks, token_blocks
from spectrim.errors import InputError, NumericalError
from spectrim.evaluation import evaluate_model, matrix_entropy, nuclear_norm
from tests.tiny_models import tiny_gpt2, tiny_llama, tiny_moe, tiny_tokenizer
from tests.tolerances import BATCH_SPLIT_RELATIVE, FLOAT32_RELATIVE

TEXT = ["the cat sat on the mat", "a dog", "one two three four five six seven"]


@pytest.fixture(scope="module")
def blocks() -> TokenBlocks:
    return token_blocks(TEXT, tiny_tokenizer(), BlockSettings(length=11, keep_tail=True))


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2, tiny_moe])
def test_figures_equal_the_slow_twin(make, blocks) -> None:
    model = make()
    assert blocks.mask is not None
    norms, entropies = [], []
    for row, real in zip(blocks.ids, blocks.mask, strict=True):
        with torch.no_grad():
            output = model(row[real][None], output_hidden_states=True)
        hidden = output.hidden_states[-1][0].double()
        if len(hidden) < 2:
            continue
        rows = hidden - hidden.mean(0)
        rows = rows / rows.norm(dim=1, keepdim=True)
        columns = rows.norm(dim=0).sort(descending=True).values
        norms.append(float(columns[: min(rows.shape)].sum()) / len(rows))
        shares = torch.linalg.svdvals(rows) ** 2 / len(rows)
        shares = shares[shares > 1e-13]
        entropies.append(float(-(shares * shares.log()).sum()))
    figures = evaluate_model(model, blocks, ["nuclear_norm", "matrix_entropy"])
    assert figures["matrix_nuclear_norm"] == pytest.approx(fmean(norms), rel=FLOAT32_RELATIVE)
    assert figures["matrix_entropy"] == pytest.approx(fmean(entropies), rel=FLOAT32_RELATIVE)


@pytest.mark.parametrize("evaluator", [nuclear_norm, matrix_entropy])
def test_the_batch_size_changes_nothing(evaluator, blocks) -> None:
    one, many = (
        evaluator.evaluate(tiny_llama(), blocks, evaluator.Options(n)).popitem() for n in (1, 5)
    )
    assert one[1] == pytest.approx(many[1], rel=BATCH_SPLIT_RELATIVE)
    with pytest.raises(InputError, match="batch_size is 0"):
        evaluator.Options(0)


def test_states_that_are_not_finite(blocks) -> None:
    broken = tiny_llama()
    nn.init.constant_(broken.model.norm.weight, torch.nan)
    with pytest.raises(NumericalError, match="hidden states of batch of rows 0 to 6"):
        nuclear_norm.evaluate(broken, blocks, nuclear_norm.Options())


def test_single_tokens_have_no_directions(blocks) -> None:
    assert blocks.mask is not None
    mask = torch.zeros_like(blocks.mask)
    mask[:, 0] = True
    alone = dataclasses.replace(blocks, mask=mask)
    with pytest.raises(InputError, match="no row has two tokens"):
        nuclear_norm.evaluate(tiny_llama(), alone, nuclear_norm.Options())
