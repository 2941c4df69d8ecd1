"""The loss of next_token is the task's: answers alone where rows say so, all of a text else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from spectrim.checkpoint import attach_config
from spectrim.data import TokenBlocks
from spectrim.data.tasks import TaskRows, write_task
from spectrim.errors import InputError
from spectrim.pipeline.recipe import CalibrationRecipe, Recipe, RefinementRecipe, TaskRecipe
from spectrim.pipeline.refine import refine
from spectrim.pruning import Objective
from spectrim.refinement import REFINEMENTS, TrainingInputs
from spectrim.runtime.context import RunContext
from tests.checkpoint.compressing import compress
from tests.tiny_models import TINY_MODELS, tiny_tokenizer, tiny_tokens


def _compressed():
    model = TINY_MODELS["llama"]()
    attach_config(model, compress(model, "lowrank"))
    return model


def _blocks(scored: bool) -> TokenBlocks:
    ids = tiny_tokens(rows=8, length=16)
    marks = torch.zeros_like(ids, dtype=torch.bool)
    marks[:, 12:] = True
    name = "answers" if scored else "text"
    return TokenBlocks(ids, None, name, name, 1, scored=marks if scored else None)


def _loss(model, blocks: TokenBlocks) -> float:
    mask = torch.ones_like(blocks.ids, dtype=torch.bool)
    every = mask.clone()
    every[:, 0] = False
    scored = every if blocks.scored is None else blocks.scored
    return Objective(TaskRows(blocks.ids, mask, scored, "", "")).value(model.eval())


@pytest.mark.parametrize("scored", [True, False])
def test_its_first_loss_is_that_of_the_counted_tokens(scored):
    model, blocks = _compressed(), _blocks(scored)
    expected = _loss(model, blocks)
    options = REFINEMENTS.options("finetune", {"steps": 1, "batch_size": 8})
    inputs = TrainingInputs(model, model, blocks)
    losses = REFINEMENTS.get("finetune").refine(inputs, options, RunContext())
    assert losses["next token"] == pytest.approx([expected], rel=1e-5)


def test_training_on_answers_lowers_their_loss_more():
    options = REFINEMENTS.options("finetune", {"steps": 30, "learning_rate": 3e-3})
    after = {}
    for scored in (True, False):
        model = _compressed()
        inputs = TrainingInputs(model, model, _blocks(scored))
        REFINEMENTS.get("finetune").refine(inputs, options, RunContext())
        after[scored] = _loss(model, _blocks(True))
    assert after[True] < after[False] < _loss(_compressed(), _blocks(True))


def test_a_task_is_seen_whole_unless_the_refinement_says_how_much(tmp_path):
    path = tmp_path / "task.jsonl"
    write_task([(f"after {n} comes ", str(n + 1)) for n in range(30)], path)
    step = RefinementRecipe("finetune", {"steps": 1})
    recipe = Recipe(
        task=TaskRecipe(data=str(path)),
        calibration=CalibrationRecipe(sequences=5),
        refinement=(step,),
    )
    for wanted, sequences in ((30, None), (7, 7)):
        model = _compressed()
        given = recipe.with_changes(refinement=(replace(step, sequences=sequences),))
        refined = refine(TINY_MODELS["llama"](), model, tiny_tokenizer(), given)
        (entry,) = refined.config.quantization_config.provenance["refinement"]
        assert entry["data"]["sequences"] == wanted


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"epochs": 0}, {"learning_rate": 0.0}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(InputError):
        REFINEMENTS.options("finetune", wrong)
