"""The bundled arithmetic model loads by its name and solves problems it was not trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from spectrim.checkpoint import load
from spectrim.checkpoint.load import ASSETS
from spectrim.data.tasks import RowSettings, task_rows
from spectrim.data.tasks.word_problems import SPLITS, word_problems
from spectrim.evaluation.tasks.accuracy import AccuracySettings, exact_match

DIRECTORY = ASSETS / "arithmetic"
LARGEST_WEIGHTS = 8_000_000
"""Bytes; it travels with the package."""
SOLVED, STANDARD_ERROR = 0.90, 0.03
"""Asked of the model; and what chance does to a share of 90% among 120 problems."""


@pytest.fixture(scope="module")
def loaded():
    return load("arithmetic", dtype=torch.float32)


@pytest.mark.slow
def test_it_solves_problems_of_the_test_split(loaded):
    settings = AccuracySettings(batch_size=120)
    found = exact_match(*loaded, word_problems("test", 120, seed=1), settings)
    assert found["accuracy"] >= SOLVED
    stated = json.loads((DIRECTORY / "training.json").read_text())["exact_match"]["test"]
    assert abs(found["accuracy"] - stated) < 3 * STANDARD_ERROR


@pytest.mark.parametrize("split", SPLITS)
def test_its_tokenizer_writes_problems_back_and_knows_every_word(loaded, split):
    _, tokenizer = loaded
    for example in word_problems(split, 200, seed=2):
        text = example.prompt + example.answer
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_its_context_holds_every_problem(loaded):
    model, tokenizer = loaded
    rows = task_rows(
        word_problems("test", 500, seed=3),
        tokenizer,
        RowSettings(length=model.config.max_position_embeddings),
    )
    assert len(rows) == 500


def test_it_is_small_and_has_a_card():
    assert (DIRECTORY / "model.safetensors").stat().st_size < LARGEST_WEIGHTS
    card = Path(DIRECTORY / "README.md").read_text()
    assert "license: apache-2.0" in card
    stated = json.loads((DIRECTORY / "training.json").read_text())["exact_match"]
    assert all(f"{split} | {stated[split]:.1%}" in card for split in SPLITS)
