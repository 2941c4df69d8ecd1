"""Compress, save, load, generate and refine with a factored table, tied and untied."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel

import spectrim
from spectrim.checkpoint import SpectrimConfig, export_dense, export_self_contained, load
from spectrim.decompositions import TABLE_METHODS
from spectrim.errors import CheckpointError, InputError
from spectrim.evaluation import size
from spectrim.layers import FactoredEmbedding, FactoredHead
from spectrim.pipeline.embedding import compress_embeddings, plan_table
from spectrim.pipeline.plan import factorize, plan
from spectrim.pipeline.recipe import EmbeddingRecipe, Recipe, RefinementRecipe, recipe_from
from spectrim.pipeline.refine import refine
from spectrim.pipeline.replace import cast_for_saving, replace_layers
from spectrim.runtime.cache import Cache
from spectrim.runtime.context import RunContext
from tests.runs import Forwards, small_recipe, text_file
from tests.tiny_models import TINY_MODELS, tiny_llama, tiny_tied, tiny_tokenizer, tiny_tokens
from tests.tolerances import DENSE_EXPORT_ABSOLUTE

NAMES = ("llama", "tied", "gpt2")
TIED = ("tied", "gpt2")
CASES = [(name, method) for name in NAMES for method in TABLE_METHODS.names()]
RANK = 12  # 0.5 * 128 * 32 / (128 + 32), a multiple of two


def recipe_of(text, method: str = "afm", **changes) -> Recipe:
    given = EmbeddingRecipe(budget=0.5, method=method)
    return small_recipe(text, allocation="uniform", embeddings=given, **changes)


def compressed(model: PreTrainedModel, recipe: Recipe) -> PreTrainedModel:
    decomposition = factorize(model, tiny_tokenizer(), recipe)
    smaller = replace_layers(model, decomposition, plan(decomposition, recipe))
    return compress_embeddings(model, smaller, tiny_tokenizer(), recipe)


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    return model(tiny_tokens()).logits


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return text_file(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="module")
def saved(text, tmp_path_factory):
    """Directory and model in memory, by (name, method)."""
    found = {}
    for name, method in CASES:
        model = TINY_MODELS[name]()
        smaller = compressed(model, recipe_of(text, method))
        directory = tmp_path_factory.mktemp(f"{name}_{method}") / "out"
        spectrim.save(smaller, tiny_tokenizer(), str(directory))
        found[name, method] = (directory, smaller)
    return found


def tensors_in(directory) -> dict[str, torch.Tensor]:
    with safe_open(directory / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.mark.few(4)
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_plain_from_pretrained_gives_the_same_model(saved, case, tmp_path):
    directory, smaller = saved[case]
    loaded, info = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not any(info.values())
    table = loaded.get_input_embeddings()
    assert isinstance(table, FactoredEmbedding)
    assert table.rank == RANK
    assert torch.equal(logits(loaded), logits(smaller))
    loaded.save_pretrained(tmp_path)
    again, _ = load(tmp_path)
    assert torch.equal(logits(again), logits(smaller))
    config = again.config.quantization_config
    assert config.to_dict() == smaller.config.quantization_config.to_dict()


@pytest.mark.parametrize("name", TIED)
def test_the_tie_is_kept(saved, name):
    loaded, _ = load(saved[name, "afm"][0])
    table, head = loaded.get_input_embeddings(), loaded.get_output_embeddings()
    assert isinstance(head, FactoredHead)
    assert head.table is table
    for model in (
        copy.deepcopy(loaded),
        cast_for_saving(loaded, torch.bfloat16),
        loaded.half(),
    ):
        table = model.get_input_embeddings()
        assert model.get_output_embeddings().table is table
        table.basis.weight.data.zero_()
        table.basis.bias.data.zero_()
        assert not model.get_output_embeddings()(torch.ones(1, 32).to(model.dtype)).any()


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_bytes_are_counted_once(saved, case):
    directory, smaller = saved[case]
    stored = tensors_in(directory)
    mean = 0 if case[1] == "svd" else 32
    place = next(n for n, m in smaller.named_modules() if isinstance(m, FactoredEmbedding))
    ours = [tensor.numel() for name, tensor in stored.items() if name.startswith(place + ".")]
    assert sum(ours) == RANK * (128 + 32) + mean
    assert ("lm_head.weight" in stored) == (case[0] not in TIED)
    assert size.stored_bytes(smaller) == sum(tensor.nbytes for tensor in stored.values())


@pytest.mark.few(3)
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_dense_export_has_the_original_names_and_the_same_logits(saved, case, tmp_path):
    directory, smaller = saved[case]
    out = export_dense(directory, tmp_path / "dense")
    dense, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info.values())
    assert (logits(dense) - logits(smaller)).abs().max() <= DENSE_EXPORT_ABSOLUTE
    tied = dense.get_output_embeddings().weight is dense.get_input_embeddings().weight
    assert tied == (case[0] in TIED)
    original = TINY_MODELS[case[0]]()
    original.save_pretrained(tmp_path / "original")
    assert tensors_in(out).keys() == tensors_in(tmp_path / "original").keys()


@pytest.mark.few(1)
@pytest.mark.parametrize("name", NAMES)
def test_the_self_contained_export_loads(saved, name, tmp_path, monkeypatch):
    cache = str(tmp_path / "modules")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", cache)
    directory, smaller = saved[name, "afm"]
    out = export_self_contained(directory, tmp_path / "own")
    loaded = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    assert type(loaded.get_input_embeddings()).__module__ != FactoredEmbedding.__module__
    assert torch.equal(logits(loaded), logits(smaller))


@pytest.mark.parametrize("name", NAMES)
def test_the_bare_base_model_reads_it(saved, name):
    directory, smaller = saved[name, "afm"]
    bare = AutoModel.from_pretrained(directory)
    with torch.no_grad():
        expected = smaller.base_model(tiny_tokens()).last_hidden_state
        assert torch.equal(bare(tiny_tokens()).last_hidden_state, expected)


@pytest.mark.parametrize("name", NAMES)
def test_generates(saved, name):
    loaded, _ = load(saved[name, "afm"][0])
    made = loaded.generate(
        tiny_tokens(1, 4), max_new_tokens=5, min_new_tokens=5, do_sample=False
    )
    assert made.shape == (1, 9)


@pytest.mark.parametrize("name", NAMES)
def test_the_original_is_not_touched(text, name):
    model = TINY_MODELS[name]()
    before, tied = logits(model), model.config.tie_word_embeddings
    compressed(model, recipe_of(text))
    assert torch.equal(logits(model), before)
    assert model.config.tie_word_embeddings is tied
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert (head.weight is table.weight) == tied


@pytest.mark.few(1)
@pytest.mark.parametrize("refinement", ["distillation", "block_distillation"])
@pytest.mark.parametrize("name", NAMES)
def test_refinements_work_around_it(text, name, refinement):
    options = {"tokens": 400} if refinement == "distillation" else {"epochs": 1}
    step = RefinementRecipe(refinement, options)
    recipe = recipe_of(text, refinement=(step,))
    model = TINY_MODELS[name]()
    smaller = compressed(model, recipe)
    before, table = logits(smaller), smaller.get_input_embeddings().dense()
    refined = refine(model, smaller, tiny_tokenizer(), recipe)
    assert not torch.equal(logits(refined), before)
    assert torch.equal(refined.get_input_embeddings().dense(), table)


def test_nothing_is_asked_nothing_is_done(text):
    model = tiny_llama()
    recipe = small_recipe(text)
    assert plan_table(model, tiny_tokenizer(), recipe) is None
    assert compress_embeddings(model, model, tiny_tokenizer(), recipe) is model


def test_statistics_are_kept(text, tmp_path):
    model, recipe = tiny_tied(), recipe_of(text, "obd")
    cache = Cache(tmp_path)
    first = plan_table(model, tiny_tokenizer(), recipe, RunContext(cache))
    with Forwards(model) as forwards:
        second = plan_table(model, tiny_tokenizer(), recipe, RunContext(cache))
    assert forwards.count == 0
    assert torch.equal(first.table.weight(5), second.table.weight(5))
    damaged = next(tmp_path.glob("embedding-*"))
    damaged.write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="damaged"):
        plan_table(model, tiny_tokenizer(), recipe, RunContext(cache))


def test_a_head_in_the_plan_cannot_be_tied_to_the_table(text):
    recipe = recipe_of(text, include=("lm_head", "mlp"))
    with pytest.raises(InputError, match="lm_head"):
        compressed(tiny_tied(), recipe)


def test_an_untied_head_is_an_ordinary_layer_beside_it(text, tmp_path):
    model = tiny_llama()
    smaller = compressed(model, recipe_of(text, include=("lm_head", "mlp")))
    spectrim.save(smaller, None, str(tmp_path / "out"))
    loaded, _ = load(tmp_path / "out")
    assert torch.equal(logits(loaded), logits(smaller))
    assert "lm_head" in smaller.config.quantization_config.layers


def test_budgets_and_options(text):
    assert recipe_from({"embeddings": {"budget": 0.25}}, "test").embeddings.budget == 0.25
    for wrong in ({"budget": 0}, {"method": "none"}, {"options": {"nothing": 1}}, {"rank": 3}):
        with pytest.raises(InputError):
            recipe_from({"embeddings": wrong}, "test")
    recipe = recipe_of(text)
    small = recipe.with_changes(embeddings=replace(recipe.embeddings, budget=0.01))
    with pytest.raises(InputError, match="rank 2"):
        plan_table(tiny_llama(), tiny_tokenizer(), small)


ENTRY = {"name": "model.embed_tokens", "rank": RANK, "mean": True, "head": "lm_head"}


@pytest.mark.parametrize(
    "changes",
    [
        {"rank": 0},
        {"rank": 33},
        {"rank": True},
        {"mean": 1},
        {"name": "model.norm"},
        {"name": "model.nowhere"},
        {"name": "../a"},
        {"head": "model.norm"},
        {"head": 3},
        {"more": 1},
    ],
    ids=str,
)
def test_configs_that_do_not_fit_are_checkpoint_errors(saved, tmp_path, changes):
    directory, _ = saved["tied", "afm"]
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((directory / "config.json").read_text())
    assert config["quantization_config"]["embeddings"] == ENTRY
    config["quantization_config"]["embeddings"] = ENTRY | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError):
        load(tmp_path)


def test_a_config_has_to_describe_the_model(saved, tmp_path):
    _, smaller = saved["tied", "afm"]
    config = smaller.config.quantization_config.to_dict() | {"embeddings": None}
    with pytest.raises(CheckpointError, match="embeddings"):
        spectrim.checkpoint.save_compressed(
            smaller, None, tmp_path / "out", SpectrimConfig.from_dict(config)
        )


def test_its_provenance_says_how(saved):
    config = saved["tied", "afm"][1].config.quantization_config
    entry = config.provenance["embeddings"]
    assert entry["method"] == "afm"
    assert entry["kept"] == RANK * (128 + 32) / (128 * 32)
    assert 0 < entry["lost"] < 1


def test_progress_is_shown(text):
    seen = []

    def track(items, what, total):
        seen.append((what, total))
        return items

    model, recipe = tiny_tied(), recipe_of(text)
    smaller = compressed(model, small_recipe(text, allocation="uniform"))
    progress = RunContext(progress=track)
    compress_embeddings(model, smaller, tiny_tokenizer(), recipe, progress)
    assert seen == [("embedding statistics", 2)]
