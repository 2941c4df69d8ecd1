"""Refinements in recipes, in the pipeline and on the command line."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

import spectrim
from spectrim.checkpoint import load
from spectrim.cli.app import app
from spectrim.errors import InputError
from spectrim.models.replace import factored_layers
from spectrim.pipeline.plan import factorize, plan
from spectrim.pipeline.presets import load_recipe
from spectrim.pipeline.recipe import Recipe, RefinementRecipe
from spectrim.pipeline.replace import cast_for_saving, replace_layers
from spectrim.refinement import REFINEMENTS
from tests.runs import small_recipe, text_file
from tests.tiny_models import tiny_llama, tiny_tokenizer

STEPS = (
    RefinementRecipe("block_distillation", {"epochs": 1}),
    RefinementRecipe("distillation", {"tokens": 200}, sequences=12),
)


def test_a_recipe_file_names_them_in_order(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "refinement: [{name: block_distillation},"
        " {name: distillation, options: {tokens: 200000}}]\n"
    )
    recipe = load_recipe(str(path))
    assert [step.name for step in recipe.refinement] == ["block_distillation", "distillation"]
    assert recipe.refinement[1].options == {"tokens": 200000}
    path.write_text(recipe.to_yaml())
    assert load_recipe(str(path)) == recipe
    assert Recipe().refinement == ()


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[{name: nothing}]", "unknown refinement 'nothing'"),
        ("[{name: block_distillation, options: {steps: 3}}]", "no option"),
        ("[{name: block_distillation, options: {epochs: 0}}]", "epochs"),
        ("[{name: block_distillation, sequences: 0}]", "sequences"),
        ("[{name: block_distillation, options: {tokens: 0}}]", "tokens"),
        ("[{name: block_distillation, sequences: 3, tokens: 99}]", "not both"),
        ("[block]", "refinement"),
    ],
)
def test_a_wrong_one_is_named(tmp_path, text, what):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"refinement: {text}\n")
    with pytest.raises(InputError, match=what):
        load_recipe(str(path))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return text_file(tmp_path_factory.mktemp("text") / "text.txt")


def test_the_verb_runs_all_and_records_them(text, tmp_path):
    model = tiny_llama()
    recipe = small_recipe(text, refinement=STEPS)
    decomposition = factorize(model, tiny_tokenizer(), recipe)
    smaller = replace_layers(model, decomposition, plan(decomposition, recipe), torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in smaller.state_dict().items()}
    refined = spectrim.refine(model, smaller, tiny_tokenizer(), recipe)
    assert refined.dtype == torch.float32
    assert all(torch.equal(before[name], t) for name, t in smaller.state_dict().items())
    spectrim.save(
        cast_for_saving(refined, torch.bfloat16), tiny_tokenizer(), str(tmp_path / "saved")
    )
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    entries = config["quantization_config"]["provenance"]["refinement"]
    assert [entry["name"] for entry in entries] == ["block_distillation", "distillation"]
    assert entries[0]["options"]["epochs"] == 1
    stages = [list(entry["losses"]) for entry in entries]
    assert stages == [["block 1 of 2", "block 2 of 2"], ["end to end"]]
    assert [entry["data"]["sequences"] for entry in entries] == [8, 12]
    assert load(tmp_path / "saved")[0].dtype == torch.bfloat16


def test_without_refinements_nothing_changes(text):
    model = tiny_llama()
    recipe = small_recipe(text)
    decomposition = factorize(model, tiny_tokenizer(), recipe)
    smaller = replace_layers(model, decomposition, plan(decomposition, recipe))
    assert spectrim.refine(model, smaller, tiny_tokenizer(), recipe) is smaller


@pytest.mark.slow
def test_the_command_refines(text, tmp_path):
    model = tiny_llama()
    model.save_pretrained(tmp_path / "dense")
    tiny_tokenizer().save_pretrained(tmp_path / "dense")
    recipe = small_recipe(text)
    fast = replace(recipe, probe=replace(recipe.probe, per_layer=False, joint=False))
    (tmp_path / "recipe.yaml").write_text(fast.to_yaml())
    for name, more in {"plain": [], "refined": ["--refine", "block_distillation"]}.items():
        arguments = ["compress", str(tmp_path / "dense"), "-o", str(tmp_path / name)]
        arguments += ["--recipe", str(tmp_path / "recipe.yaml"), "--no-cache", *more]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
    plain, refined = (load(tmp_path / name)[0] for name in ("plain", "refined"))
    assert [n for n, _ in factored_layers(plain)] == [n for n, _ in factored_layers(refined)]
    first, second = (dict(m.named_parameters()) for m in (plain, refined))
    assert any(not torch.equal(first[n], second[n]) for n in first)
    saved = load_recipe(str(tmp_path / "refined" / "spectrim_recipe.yaml"))
    assert [step.name for step in saved.refinement] == ["block_distillation"]


def test_ls_shows_them():
    listed = json.loads(CliRunner().invoke(app, ["ls", "--json"]).output)
    assert [entry["name"] for entry in listed["refinements"]] == REFINEMENTS.names()
