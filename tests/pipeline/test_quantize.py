"""Compressed layers with paths through the whole pipeline: compensate, save, load, export."""

from __future__ import annotations

import pytest
import torch

from spectrim.checkpoint import SpectrimConfig, export_dense, export_self_contained, load
from spectrim.checkpoint import save_compressed as save
from spectrim.errors import CheckpointError, InputError
from spectrim.evaluation.size import tensor_bytes
from spectrim.layers.quantized import CompensatedLinear
from spectrim.models.replace import compact_layers
from spectrim.models.targets import find_targets
from spectrim.pipeline.quantize import (
    add_corrections,
    choose_correction_ranks,
    compute_residual,
    correction_figures,
    quantize,
    with_correction,
)
from spectrim.pipeline.recipe import CorrectionRecipe, Recipe
from tests.checkpoint.compressing import logits
from tests.checkpoint.test_fresh_process import WITHOUT_SPECTRIM, run
from tests.runs import small_recipe, text_file
from tests.tiny_models import TINY_MODELS, tiny_llama, tiny_tied, tiny_tokenizer
from tests.tolerances import DENSE_EXPORT_ABSOLUTE, LOSS_RELATIVE


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return text_file(tmp_path_factory.mktemp("text") / "text.txt")


def recipe_for(text, base="rtn", **compensation) -> Recipe:
    given = CorrectionRecipe(base, **({"rank": 3} | compensation))
    return small_recipe(text, rank_multiple=1, correction=given)


@pytest.mark.few(2)
@pytest.mark.parametrize("name", list(TINY_MODELS))
def test_every_architecture_round_trips(name, text, tmp_path):
    model = TINY_MODELS[name]()
    base = "wanda_2_4" if name in ("gqa", "moe") else "rtn"
    smaller = quantize(model, tiny_tokenizer(), recipe_for(text, base))
    config = smaller.config.quantization_config
    save(smaller, tiny_tokenizer(), tmp_path / "a", config)
    again, _ = load(tmp_path / "a")
    assert torch.equal(logits(again), logits(smaller))
    for layer_name, layer in compact_layers(again):
        assert isinstance(layer, CompensatedLinear)
        assert layer.rank == config.layers[layer_name]["rank"]


@pytest.mark.slow
def test_new_processes_with_and_without_spectrim(text, tmp_path):
    smaller = quantize(tiny_llama(), tiny_tokenizer(), recipe_for(text))
    save(smaller, None, tmp_path / "a", smaller.config.quantization_config)
    found = run(tmp_path, "import spectrim\n", [tmp_path / "a"])
    assert torch.equal(found[str(tmp_path / "a")], logits(smaller))
    own = export_self_contained(tmp_path / "a", tmp_path / "own")
    dense = export_dense(tmp_path / "a", tmp_path / "dense")
    found = run(tmp_path, WITHOUT_SPECTRIM, [own, dense], trust_remote_code=True)
    assert torch.equal(found[str(own)], logits(smaller))
    difference = (found[str(dense)] - logits(smaller)).abs().max()
    assert difference <= DENSE_EXPORT_ABSOLUTE


def test_one_residual_serves_all_ranks(text):
    model = tiny_llama()
    recipe = with_correction(recipe_for(text))
    residual = compute_residual(model, tiny_tokenizer(), recipe)
    predicted = []
    for rank in (0, 2, 4):
        uniform, best = (
            recipe.with_changes(allocation=a, correction=CorrectionRecipe(rank=rank))
            for a in ("uniform", "loss_optimal")
        )
        even, chosen = (choose_correction_ranks(residual, r, 4) for r in (uniform, best))
        assert set(even.values()) == {rank}
        figures = [correction_figures(residual, ranks, 4) for ranks in (even, chosen)]
        assert figures[1]["path_bytes"] <= figures[0]["path_bytes"]
        losses = [f["predicted_loss"] for f in figures]
        assert losses[1] <= losses[0] * (1 + LOSS_RELATIVE)
        predicted.append(losses[1])
    assert predicted == sorted(predicted, reverse=True)
    assert predicted[0] == correction_figures(residual, even, 4)["predicted_loss_without_path"]


def test_a_budget_of_bytes_is_kept(text):
    model = tiny_llama()
    recipe = with_correction(recipe_for(text, bytes=5000))
    residual = compute_residual(model, tiny_tokenizer(), recipe)
    for allocation in ("uniform", "loss_optimal"):
        ranks = choose_correction_ranks(residual, recipe.with_changes(allocation=allocation), 2)
        smaller = add_corrections(model, residual, ranks, recipe)
        held = sum(
            p.numel() for n, p in smaller.named_parameters() if ".left." in n or ".right." in n
        )
        assert 0 < 2 * held <= 5000


def test_rank_zero_needs_no_text(tmp_path):
    recipe = small_recipe(tmp_path / "absent.txt", correction=CorrectionRecipe(rank=0))
    smaller = quantize(tiny_llama(), None, recipe)
    assert {layer.rank for _, layer in compact_layers(smaller)} == {0}
    save(smaller, None, tmp_path / "a", smaller.config.quantization_config)
    assert torch.equal(logits(load(tmp_path / "a")[0]), logits(smaller))


def test_bfloat16_and_a_tied_output_embedding(text, tmp_path):
    recipe = recipe_for(text).with_changes(
        include=("lm_head", "mlp"), save_dtype="bfloat16", allocation="uniform"
    )
    smaller = quantize(tiny_tied(), tiny_tokenizer(), recipe)
    config = smaller.config.quantization_config
    assert config.untied
    assert smaller.dtype == torch.bfloat16
    save(smaller, None, tmp_path / "a", config)
    assert torch.equal(logits(load(tmp_path / "a")[0]), logits(smaller))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"method": "afm"}, "a method without metrics cannot be combined"),
        ({"allocation": "welore"}, "corrections are ranked by loss or uniformly"),
    ],
)
def test_choices_that_have_no_path(changes, what):
    with pytest.raises(InputError, match=what):
        quantize(tiny_llama(), None, Recipe(**changes))


@pytest.mark.parametrize(
    "wrong",
    [
        {"rank": -1},
        {"rank": True},
        {"base": "no_such"},
        {"base": 3},
        {"options": {"bits": 99}},
        {"options": {"unknown": 1}},
        {"options": None},
        {"more": 1},
    ],
    ids=str,
)
def test_config_entries_that_cannot_be(wrong):
    entry = {"kind": "compensated", "base": "rtn", "options": {"bits": 4}, "rank": 2}
    SpectrimConfig({"a.b": entry})
    with pytest.raises(CheckpointError):
        SpectrimConfig({"a.b": entry | wrong})


def test_scales_take_the_bytes_of_the_dtype_that_is_saved(tmp_path):
    pytest.importorskip("torchao", reason="torchao is not installed (extra spectrim[torchao])")
    model, _ = load("reference", dtype=torch.float32)
    given = CorrectionRecipe("torchao", {"bits": 4}, rank=0)
    small = small_recipe(tmp_path, correction=given, save_dtype="bfloat16")
    smaller = quantize(model, None, small)
    save(smaller, None, tmp_path / "out", smaller.config.quantization_config)
    weights = sum(target.weights for target in find_targets(model))
    sizes = tensor_bytes(tmp_path / "out")
    held = sum(size for name, size in sizes.items() if ".base." in name)
    assert held == weights * (1 / 2 + 2 * 2 / 32), "codes, a scale and a zero for each 32"
    again, _ = load(tmp_path / "out")
    assert torch.equal(logits(again), logits(smaller))
