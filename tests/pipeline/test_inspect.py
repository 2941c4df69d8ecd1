"""Ranks of a model's own weights, dense and compressed, against a direct SVD in float64."""

from __future__ import annotations

import math

import pytest
import torch

from spectrim.data import BlockSettings, token_blocks
from spectrim.errors import ModelError
from spectrim.pipeline.inspect import (
    break_even,
    inspect_layers,
    linear_layers,
    representation,
    timings,
)
from spectrim.pipeline.plan import factorize, plan
from spectrim.pipeline.replace import replace_layers
from tests.runs import small_recipe, text_file
from tests.tiny_models import TINY_MODELS, tiny_llama, tiny_moe, tiny_tokenizer
from tests.tolerances import SPECTRUM_RELATIVE


def weight_of(module):
    dense = module.dense()[0] if hasattr(module, "dense") else module.weight.double()
    return (dense if type(module).__name__ != "Conv1D" else dense.T).detach()


@pytest.mark.parametrize("name", TINY_MODELS)
def test_figures_against_a_direct_svd(name):
    model = TINY_MODELS[name]()
    reports = inspect_layers(model)
    assert len(reports) == len({report.name for report in reports}) > 0
    for report in reports:
        weight = weight_of(model.get_submodule(report.name))
        assert report.shape == tuple(weight.shape)
        assert report.rank is None
        values = torch.linalg.svdvals(weight)
        shares = values**2 / (values**2).sum()
        effective = math.exp(-float((shares * shares.log()).sum()))
        assert report.effective_rank == pytest.approx(effective, rel=SPECTRUM_RELATIVE)
        stable = float((values**2).sum() / values[0] ** 2)
        assert report.stable_rank == pytest.approx(stable, rel=SPECTRUM_RELATIVE)
        half = len(values) // 2
        logs = float((values[:half] ** 2 / values[half] ** 2).log().sum())
        assert report.tail_exponent == pytest.approx(1 + half / logs, rel=SPECTRUM_RELATIVE)


def test_every_expert_is_a_layer():
    names = [report.name for report in inspect_layers(tiny_moe())]
    assert sum("experts.up." in name for name in names) == 2 * 4
    assert not any("lm_head" in name for name in names)


@pytest.mark.parametrize("layer", ["lowrank", "pivoted"])
def test_compressed_layers_have_the_rank_that_they_store(tmp_path, layer):
    model, data = tiny_llama(), text_file(tmp_path / "text.txt")
    recipe = small_recipe(data, layer=layer)
    decomposition = factorize(model, tiny_tokenizer(), recipe)
    smaller = replace_layers(model, decomposition, plan(decomposition, recipe))
    before = {report.name: report for report in inspect_layers(model)}
    ranks = smaller.config.quantization_config.layers
    for report in inspect_layers(smaller):
        assert report.rank == ranks.get(report.name, {"rank": None})["rank"]
        assert report.shape == before[report.name].shape
        if report.rank is not None:
            assert report.effective_rank <= report.rank
            values = torch.linalg.svdvals(weight_of(smaller.get_submodule(report.name)))
            shares = values[: report.rank] ** 2 / (values**2).sum()
            entropy = -float((shares * shares.log()).sum())
            assert report.effective_rank == pytest.approx(
                math.exp(entropy), rel=SPECTRUM_RELATIVE
            )


@pytest.mark.parametrize(
    ("shape", "plain", "pivoted"),
    [((4, 4), 1, 3), ((6, 3), 1, 2), ((512, 192), 139, 191), ((1, 5), 0, 0)],
)
def test_break_even_ranks(shape, plain, pivoted):
    assert break_even("lowrank", shape) == plain
    assert break_even("pivoted", shape) == pivoted


def test_a_model_without_layers():
    model = tiny_llama()
    model.model.layers = torch.nn.ModuleList()
    with pytest.raises(ModelError, match="no linear layer"):
        inspect_layers(model)


def test_times_are_of_growing_texts(tmp_path):
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    settings = BlockSettings(length=64, max_tokens=600)
    blocks = token_blocks(str(text_file(tmp_path / "text.txt")), tokenizer, settings)
    found = timings(model, blocks)
    assert [timing.tokens for timing in found] == [128, 256, 512, blocks.ids.numel()]
    assert all(timing.nuclear_norm_ms > 0 and timing.entropy_ms > 0 for timing in found)
    figures = representation(model, blocks)
    assert set(figures) == {"matrix_nuclear_norm", "matrix_entropy"}
    assert 0 < figures["matrix_entropy"] <= math.log(32)
    one = timings(model, blocks, [64])[0]
    row = representation(model, token_blocks(
        str(tmp_path / "text.txt"), tokenizer, BlockSettings(length=64, max_tokens=64)
    ))  # fmt: skip
    assert one.entropy == pytest.approx(row["matrix_entropy"])


def test_the_walk_does_not_enter_factors(tmp_path):
    model, data = tiny_llama(), text_file(tmp_path / "text.txt")
    recipe = small_recipe(data)
    decomposition = factorize(model, tiny_tokenizer(), recipe)
    smaller = replace_layers(model, decomposition, plan(decomposition, recipe))
    dense = [name for name, _ in linear_layers(model)]
    assert [name for name, _ in linear_layers(smaller)] == dense
