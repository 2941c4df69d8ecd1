"""Quantized sizes in one file: a smaller rank is a beginning of codes and scales."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import spectrim
from spectrim.allocation import NestedSizes
from spectrim.checkpoint import (
    export_dense,
    export_self_contained,
    export_size,
    sizes_of,
)
from spectrim.errors import CheckpointError, InputError
from spectrim.layers.lowrank import LowRankLinear
from spectrim.layers.quantized import QUANTIZERS, CompensatedLinear
from spectrim.pipeline.budgets import ElasticRecipe
from spectrim.pipeline.compress import elastic
from spectrim.pipeline.loaded_model import LoadedModel
from spectrim.pipeline.recipe import QuantizationRecipe, Recipe, recipe_from
from spectrim.planning import Decomposition
from spectrim.runtime.context import RunContext
from spectrim.statistics import LayerProblem
from tests.checkpoint.compressing import logits
from tests.checkpoint.elastic_models import decompose
from tests.checkpoint.test_elastic import CountedReads, difference
from tests.tiny_models import TINY_MODELS, tiny_tokenizer
from tests.tolerances import CUT_LOGITS_RELATIVE, QUANTIZED_DENSE_RELATIVE

BUDGETS = (0.1, 0.14, 0.2, 0.25)
CASES = [("llama", 8), ("llama", 4), ("gpt2", 4), ("qwen2_bias", 8), ("tied", 4), ("moe", 8)]
cases = pytest.mark.parametrize("case", CASES, ids=str, indirect=True)


def recipe_of(bits: int, **changes) -> Recipe:
    quantization = QuantizationRecipe(bits, "rtn", 16)
    sizes = ElasticRecipe(BUDGETS[0], BUDGETS[-1])
    recipe = Recipe(method="svd", layer="lowrank", budget=sizes.largest, elastic=sizes)
    return recipe.with_changes(quantization=quantization, **changes)


@dataclass(frozen=True)
class Case:
    held: torch.nn.Module
    decomposition: Decomposition
    sizes: NestedSizes
    directory: Path
    options: dict


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root, found = tmp_path_factory.mktemp("quantized"), {}

    def make(name: str, bits: int) -> Case:
        if (name, bits) not in found:
            model = TINY_MODELS[name]()
            decomposition, _ = decompose(model, "lowrank")
            recipe = recipe_of(bits)
            original = LoadedModel(model, tiny_tokenizer(), torch.float32)
            held = elastic(original, decomposition, recipe, RunContext()).model
            out = spectrim.save(held, tiny_tokenizer(), root / f"{name}{bits}")
            sizes = sizes_of(held.config.quantization_config.elastic)
            given = held, decomposition, sizes, out, recipe.quantization.options
            found[name, bits] = Case(*given)
        return found[name, bits]

    return make


@pytest.fixture
def case(request, made) -> Case:
    return made(*request.param)


@cases
def test_each_size_loads_as_it_is_held_in_memory(case):
    for budget in BUDGETS:
        plain = AutoModelForCausalLM.from_pretrained(case.directory, spectrim_budget=budget)
        spectrim.resize(case.held, budget)
        assert difference(logits(plain), logits(case.held)) <= CUT_LOGITS_RELATIVE
        ranks = case.sizes.ranks(budget)
        for name, rank in ranks.items():
            layer = plain.get_submodule(name)
            assert isinstance(layer, CompensatedLinear if rank is None else LowRankLinear)
            assert layer.rank == (rank or 0)


@cases
def test_a_cut_is_what_rounding_the_cut_factors_gives(case):
    """Groups are whole for every rank: rounding after the cut changes no number."""
    model, _ = spectrim.load(case.directory, budget=BUDGETS[1])
    cut = {n: m for n, m in model.named_modules() if isinstance(m, LowRankLinear)}
    assert cut
    for name, layer in cut.items():
        whole = case.decomposition.factors[name].balanced().truncated(layer.rank)
        sides = {"rtn_columns": (whole[0], layer.left), "rtn": (whole[1], layer.right)}
        for quantizer, (factor, found) in sides.items():
            options = QUANTIZERS.options(quantizer, case.options)
            problem = LayerProblem(name, factor.float(), None, None)
            expected = QUANTIZERS.get(quantizer).compress(problem, options)
            assert torch.equal(found.matrix(torch.float32), expected.matrix(torch.float32))


@cases
def test_budgets_count_bytes_and_only_those_are_read(case, monkeypatch):
    dense = 4 * case.sizes.dense_weights
    read = []
    for budget in BUDGETS:
        counted = CountedReads(monkeypatch)
        model = AutoModelForCausalLM.from_pretrained(case.directory, spectrim_budget=budget)
        monkeypatch.undo()
        tensors = {t.data_ptr(): t.nbytes for t in model.state_dict().values()}
        assert counted.bytes == sum(tensors.values())
        layers = [model.get_submodule(name) for name in case.sizes.layers]
        stored = [b.nbytes for layer in layers for b in layer.buffers()]
        assert sum(stored) <= budget * dense
        plan = model.config.quantization_config.provenance["plan"]
        assert sum(stored) == pytest.approx(plan["kept"] * dense, rel=0.01)
        read.append(counted.bytes)
    assert read == sorted(read)
    assert read[0] < read[-1]


@cases
def test_resizing_is_loading_downwards_without_the_file(case, tmp_path):
    copied = Path(shutil.copytree(case.directory, tmp_path / "copied"))
    model, _ = spectrim.load(copied, budget=0.1)
    spectrim.resize(model, 0.14)
    largest = {n for n, rank in case.sizes.ranks(0.14).items() if rank is None}
    smaller = {n for n, rank in case.sizes.ranks(0.1).items() if rank is None}
    if largest == smaller:
        shutil.rmtree(copied)
    spectrim.resize(model, 0.1)
    expected, _ = spectrim.load(case.directory, budget=0.1)
    assert torch.equal(logits(model), logits(expected))
    found, wanted = (m.state_dict() for m in (model, expected))
    assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in wanted.items()}


@cases
def test_a_size_is_exported_in_its_bits(case, tmp_path):
    out = export_size(case.directory, tmp_path / "fixed", {"budget": 0.14})
    exported, _ = spectrim.load(out)
    expected, _ = spectrim.load(case.directory, budget=0.14)
    assert torch.equal(logits(exported), logits(expected))
    config = exported.config.quantization_config
    assert config.inner["others"] == {"left": "rtn_columns"}
    assert config.elastic is None
    files = [
        sum(f.stat().st_size for f in d.glob("*.safetensors")) for d in (out, case.directory)
    ]
    assert files[0] < files[1]
    code = (export_self_contained(out, tmp_path / "alone") / "modeling_spectrim.py").read_text()
    assert "class RtnColumnsLinear" in code
    dense, _ = spectrim.load(export_dense(case.directory, tmp_path / "dense", budget=0.14))
    assert difference(logits(dense), logits(expected)) <= QUANTIZED_DENSE_RELATIVE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantizer": {"options": {"bits": 99}, "dtype": "float32"}}, "bits from 2 to 8"),
        ({"quantizer": {"options": {}, "dtype": "int3"}}, "expected options and a dtype"),
        ({"quantizer": {"options": {}}}, "expected options and a dtype"),
        ({"kind": "pivoted"}, "quantized layers of kind pivoted"),
    ],
)
def test_a_damaged_entry_is_refused(made, tmp_path, change, message):
    copied = Path(shutil.copytree(made("llama", 8).directory, tmp_path / "copied"))
    config = json.loads((copied / "config.json").read_text())
    config["quantization_config"]["elastic"] |= change
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        spectrim.load(copied)


def test_time_is_not_measured(made):
    with pytest.raises(InputError, match="time of quantized layers"):
        made("llama", 8).sizes.budget_for_time(None, 0.5)


def test_vllm_asks_for_one_size(made):
    from spectrim_vllm.elastic import chosen_ranks

    entry = made("llama", 8).held.config.quantization_config.elastic
    with pytest.raises(ValueError, match="spectrim export --budget"):
        chosen_ranks(entry)


def test_scales_across_components_are_refused():
    with pytest.raises(InputError, match="hold for one rank"):
        recipe_of(8, layer="pivoted")
    recipe = recipe_of(8).to_dict()
    recipe["quantization"] |= {"backend": "torchao", "group_size": 32}
    with pytest.raises(InputError, match="hold for one rank"):
        recipe_from(recipe, "options")
