"""Shards in, shards out: the checkpoint that the whole model gives, in less memory than it."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import spectrim
from spectrim import checkpoint
from spectrim.calibration.blockwise import BlockwiseWalk
from spectrim.checkpoint.save_sharded import open_streamed, save_streamed
from spectrim.errors import CheckpointError, InputError, ModelError
from spectrim.models.offload import StreamSizes
from spectrim.pipeline import memory_plan
from spectrim.pipeline.compatibility import in_parts
from spectrim.pipeline.compress import CompressOptions, compress
from spectrim.pipeline.memory_plan import MemoryEstimate, bytes_of, plan_memory
from spectrim.pipeline.plan import factorize
from spectrim.pipeline.plan import plan as run_plan
from spectrim.pipeline.recipe import EmbeddingRecipe, Recipe, RefinementRecipe, SharingRecipe
from spectrim.pipeline.replace import CompressedParts, replace_layers
from spectrim.planning.lazy_decomposition import LayerFiles
from spectrim.runtime.cache import Cache, lasting
from spectrim.runtime.context import RunContext
from spectrim.statistics._stored import Parts
from tests.runs import small_recipe, text_file
from tests.tiny_models import TINY_MODELS, tiny_gemma, tiny_tokenizer, tiny_tokens
from tests.tolerances import DENSE_EXPORT_ABSOLUTE, LOSS_RELATIVE

ROOT = Path(__file__).parents[2]
SIZES = StreamSizes(batch_rows=4, logits_rows=4, activation_bytes=0)
CASES = ("llama", "tied", "gpt2", "mixtral", "gemma")
MODELS = TINY_MODELS | {"gemma": tiny_gemma}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("streaming")
    text_file(place / "text.txt")
    for name in CASES:
        MODELS[name]().save_pretrained(place / name)
        tiny_tokenizer().save_pretrained(place / name)
    return place


def recipe_for(name: str, root: Path) -> Recipe:
    head_too = {"include": (".",), "allocation": "uniform"} if name == "tied" else {}
    return in_parts(small_recipe(root / "text.txt", **head_too))


def opened_at(directory: Path, **options):
    opened = open_streamed(directory, **options)
    opened.streamed.sizes = SIZES
    return opened


def streamed(directory: Path, recipe: Recipe, output: Path, dtype=torch.float32, **options):
    opened = opened_at(directory, **options)
    with lasting(None) as cache:
        result = compress(
            opened.streamed,
            opened.tokenizer,
            recipe,
            RunContext(cache),
            options=CompressOptions(dtype=dtype),
        )
        save = checkpoint.SaveOptions()
        return save_streamed(result.model, result.parts, opened.tokenizer, output, save)


@torch.no_grad()
def logits(model) -> Tensor:
    return model(tiny_tokens()).logits


@pytest.mark.few(2)
@pytest.mark.parametrize("name", CASES)
def test_streamed_checkpoint_is_that_of_the_whole_model(root, tmp_path, name):
    recipe = recipe_for(name, root)
    model, tokenizer = spectrim.load(root / name)
    decomposition = factorize(model, tokenizer, recipe)
    plan = run_plan(decomposition, recipe)
    expected = replace_layers(model, decomposition, plan)
    found, found_tokenizer = checkpoint.load(streamed(root / name, recipe, tmp_path / "out"))
    assert (logits(found) - logits(expected)).abs().max() <= DENSE_EXPORT_ABSOLUTE
    one, other = (m.config.quantization_config for m in (found, expected))
    assert one.layers == other.layers
    assert one.split_experts == other.split_experts
    assert one.untied == other.untied == (name == "tied")
    assert found_tokenizer("ab")["input_ids"] == tokenizer("ab")["input_ids"]


def test_half_precision_and_resaving(root, tmp_path):
    directory = streamed(
        root / "llama", recipe_for("llama", root), tmp_path / "b", torch.bfloat16
    )
    model, _ = checkpoint.load(directory, dtype="auto")
    assert model.dtype == torch.bfloat16
    model.save_pretrained(tmp_path / "again")
    again, _ = checkpoint.load(tmp_path / "again", dtype="auto")
    assert torch.equal(logits(model), logits(again))


class Killed(Exception):
    pass


@pytest.mark.few(1)
@pytest.mark.parametrize("after", [1, 9])
def test_decomposing_goes_on_where_it_stopped(root, tmp_path, monkeypatch, after):
    recipe = recipe_for("llama", root)
    made: list[str] = []
    save = LayerFiles.save

    def counted(files, decomposition):
        if len(made) == after:
            raise Killed
        made.extend(decomposition.shapes)
        save(files, decomposition)

    with monkeypatch.context() as patch:
        patch.setattr(LayerFiles, "save", counted)
        with pytest.raises(Killed):
            _run(root, recipe, tmp_path)
    first = list(made)
    monkeypatch.setattr(LayerFiles, "save", lambda f, d: (made.extend(d.shapes), save(f, d)))
    found = _losses(_run(root, recipe, tmp_path))
    assert sorted(made) == sorted(found), "each layer once"
    assert made[: len(first)] == first
    expected = _losses(_run(root, recipe, tmp_path / "other"))
    assert found == pytest.approx(expected, rel=LOSS_RELATIVE)


def _losses(decomposition) -> dict[str, float]:
    return {name: float(curve[1]) for name, curve in decomposition.curves.items()}


def _run(root: Path, recipe: Recipe, place: Path):
    opened = opened_at(root / "llama")
    return factorize(
        opened.streamed, opened.tokenizer, recipe, RunContext(Cache(place / "cache"))
    )


def test_statistics_and_activations_do_not_stay(root, tmp_path):
    _run(root, recipe_for("llama", root), tmp_path)
    kept = [path.name for path in (tmp_path / "cache").glob("*/*")]
    assert sorted(kept) == ["calibration.json", "factors"]


@pytest.mark.parametrize(
    "changes",
    [
        {"refinement": (RefinementRecipe("block_distillation"),)},
        {"embeddings": EmbeddingRecipe()},
        {"sharing": SharingRecipe("adjacent")},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_takes_the_whole_model_is_refused(root, changes):
    recipe = small_recipe(root / "text.txt", **changes)
    with pytest.raises(InputError, match=next(iter(changes))):
        in_parts(recipe)


def test_a_compressed_model_is_refused(root, tmp_path):
    directory = streamed(root / "llama", recipe_for("llama", root), tmp_path / "small")
    with pytest.raises(ModelError, match="already compressed"):
        open_streamed(directory)


def test_a_failed_write_leaves_nothing(root, tmp_path):
    opened = opened_at(root / "llama")
    context = RunContext(Cache(tmp_path / "cache"))
    result = compress(opened.streamed, opened.tokenizer, recipe_for("llama", root), context)

    class Short(CompressedParts):
        def __call__(self, name: str) -> dict[str, Tensor]:
            return {} if name.endswith("layers.1") else super().__call__(name)

    parts = Short(*(getattr(result.parts, field.name) for field in fields(CompressedParts)))
    with pytest.raises(CheckpointError, match="missing or foreign"):
        save_streamed(result.model, parts, None, tmp_path / "out", checkpoint.SaveOptions())
    assert not (tmp_path / "out").exists()


def test_a_place_for_the_factors_is_asked_for(root):
    opened = opened_at(root / "llama")
    with pytest.raises(InputError, match="give a cache with a directory"):
        factorize(opened.streamed, opened.tokenizer, recipe_for("llama", root))


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [("6GiB", 6 * 2**30), ("1.5 gib", 3 * 2**29), ("800MB", 8 * 10**8), ("1024", 1024)],
)
def test_amounts_of_memory(text, bytes_):
    assert bytes_of(text) == bytes_


@pytest.mark.parametrize("text", ["", "six", "6XB", "-1GiB", "1e3GB", "6 G i B"])
def test_what_is_no_amount_of_memory(text):
    with pytest.raises(InputError, match="expected for example 6GiB"):
        bytes_of(text)


def test_planner_chooses_by_the_limit(root, monkeypatch):
    monkeypatch.setattr(memory_plan, "resident_bytes", lambda: 2**29)
    opened, recipe = open_streamed(root / "llama"), small_recipe(root / "text.txt")
    needs = MemoryEstimate.of(opened, recipe)
    plenty = plan_memory(opened, recipe, 2**40)
    assert plenty.sizes is None
    assert plenty.tokens_per_batch == 96, "what the recipe says"
    slack = 2**19
    tight = plan_memory(opened, recipe, needs.streamed(1) + slack)
    assert needs.whole() > needs.streamed(1) + 2 * slack
    assert tight.sizes is not None
    assert tight.needed <= tight.limit
    assert "streaming" in str(tight)
    assert "whole model" in str(plenty)
    with pytest.raises(InputError, match="is too little: streaming this model takes about"):
        plan_memory(opened, recipe, 2**20)


def test_more_memory_is_larger_batches(root):
    opened, recipe = open_streamed(root / "llama"), small_recipe(root / "text.txt")
    recipe = recipe.with_changes(calibration=replace(recipe.calibration, tokens_per_batch=None))
    needs = MemoryEstimate.of(opened, recipe)
    rows = [needs.streamed(n) for n in (1, 2, 8)]
    assert rows == sorted(rows)


@pytest.mark.few(1)
@pytest.mark.parametrize("statistics", ["kept", "gone"])
def test_a_damaged_layer_is_made_again(root, tmp_path, monkeypatch, statistics):
    """With its statistics where a run was stopped, else from a new pass over the text."""
    recipe = recipe_for("llama", root)
    if statistics == "kept":
        _killed_at_the_last_part(root, recipe, tmp_path, monkeypatch)
    else:
        _run(root, recipe, tmp_path)
    cache = tmp_path / "cache"
    assert len(list(cache.glob("*.parts/statistics"))) == (statistics == "kept")
    file = next(cache.glob("streamed-*/factors/*up_proj*"))
    expected = file.read_bytes()
    file.write_bytes(expected[:-1] + bytes([expected[-1] ^ 1]))
    with Counted(monkeypatch) as passes, pytest.warns(UserWarning, match="again"):
        _run(root, recipe, tmp_path)
    assert file.read_bytes() == expected
    assert passes.count == (0 if statistics == "kept" else 1)


def _killed_at_the_last_part(root, recipe, place, monkeypatch):
    save = LayerFiles.save

    def stopping(files, decomposition):
        if "model.layers.1.mlp.down_proj" in decomposition.shapes:
            raise Killed
        save(files, decomposition)

    with monkeypatch.context() as patch:
        patch.setattr(Parts, "drop", lambda self, name: None)
        patch.setattr(LayerFiles, "save", stopping)
        with pytest.raises(Killed):
            _run(root, recipe, place)


class Counted:
    """Counts walks over the blocks."""

    def __init__(self, patch):
        self.count = 0
        steps = BlockwiseWalk.steps

        def counted(walk):
            self.count += 1
            return steps(walk)

        patch.setattr(BlockwiseWalk, "steps", counted)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


@pytest.mark.slow
def test_a_damaged_activation_starts_the_pass_again(root, tmp_path, monkeypatch):
    recipe = recipe_for("llama", root)
    unit, done = BlockwiseWalk._unit, []

    def stopping(walk, number):
        if len(done) == 2:
            raise Killed
        done.append(number)
        return unit(walk, number)

    with monkeypatch.context() as patch:
        patch.setattr(BlockwiseWalk, "_unit", stopping)
        with pytest.raises(Killed):
            _run(root, recipe, tmp_path)
    for file in (tmp_path / "cache").glob("*/activations/*.safetensors"):
        data = file.read_bytes()
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.warns(UserWarning, match="calibrating again"):
        found = _losses(_run(root, recipe, tmp_path))
    assert found == _losses(_run(root, recipe, tmp_path / "other"))


OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM


class OwnConfig(LlamaConfig):
    model_type = "own_of_this_test"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_code_of_the_model_travels_with_it(root, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m")
    )
    source = Path(shutil.copytree(root / "llama", tmp_path / "own"))
    (source / "modeling_own.py").write_text(OWN_CODE)
    config = json.loads((source / "config.json").read_text())
    names = {"AutoConfig": "OwnConfig", "AutoModelForCausalLM": "OwnForCausalLM"}
    config |= {"model_type": "own_of_this_test"}
    config["auto_map"] = {auto: f"modeling_own.{name}" for auto, name in names.items()}
    (source / "config.json").write_text(json.dumps(config))
    out = streamed(source, recipe_for("llama", root), tmp_path / "out", trust_remote_code=True)
    assert (out / "modeling_own.py").read_text() == OWN_CODE
    model, _ = checkpoint.load(out, trust_remote_code=True)
    assert type(model).__name__ == "OwnForCausalLM"
    assert model.config.quantization_config.layers
