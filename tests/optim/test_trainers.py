"""Optimizers inside transformers' Trainer and inside the refinements."""

from __future__ import annotations

import pytest
import torch
from transformers import Trainer, TrainingArguments

from spectrim.errors import InputError, UnknownNameError
from spectrim.optim import OPTIMIZERS, make_optimizer, option_names, split_params
from spectrim.refinement import REFINEMENTS
from spectrim.runtime import snapshots
from spectrim.runtime.cache import Cache
from spectrim.runtime.context import RunContext
from tests.contracts.test_refinements import Stop, case, same, state
from tests.optim.problems import GENERAL, OPTIONS
from tests.tiny_models import tiny_llama, tiny_tokens

STAGES = {"block_distillation": {"epochs": 4}, "distillation": {"tokens": 512}}
refinements = pytest.mark.parametrize("refinement", STAGES)


def rows() -> list[dict[str, torch.Tensor]]:
    return [{"input_ids": row, "labels": row} for row in tiny_tokens(8, 12)]


def arguments(tmp_path, **given) -> TrainingArguments:
    return TrainingArguments(
        str(tmp_path),
        max_steps=3,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **{"save_strategy": "no"} | given,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", GENERAL)
def test_trainer_takes_an_optimizer_by_name(name, tmp_path):
    """Tables and norms are stepped by AdamW, matrices by the optimizer's own rule."""
    model, plain = tiny_llama(), tiny_llama()
    for each, chosen in ((model, name), (plain, "adamw")):
        options = OPTIONS.get(name) if chosen == name else None
        optimizer = make_optimizer(chosen, split_params(each, lr_rest=1e-3), 1e-3, options)
        Trainer(
            each, arguments(tmp_path), train_dataset=rows(), optimizers=(optimizer, None)
        ).train()
    found, wanted = state(model), state(plain)
    assert all(bool(tensor.isfinite().all()) for tensor in found.values())
    place = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(found[place], wanted[place]) == (name == "adamw")


@pytest.mark.slow
@pytest.mark.parametrize("name", GENERAL)
def test_trainer_takes_the_class(name, tmp_path):
    model = tiny_llama()
    before = state(model)
    chosen = OPTIMIZERS.get(name).OPTIMIZER, {"lr": 1e-3} | OPTIONS.get(name, {})
    trainer = Trainer(
        model, arguments(tmp_path), train_dataset=rows(), optimizer_cls_and_kwargs=chosen
    )
    trainer.train()
    after = model.state_dict()
    assert all(bool(tensor.isfinite().all()) for tensor in after.values())
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.norm.weight"):
        assert not torch.equal(before[name], after[name])


def test_trainer_resumes_from_its_checkpoint(tmp_path):
    def trained(place, resume: bool):
        model = tiny_llama()
        optimizer = make_optimizer("dct_adamw", split_params(model), 1e-3)
        options = {"save_strategy": "steps", "save_steps": 2}
        trainer = Trainer(
            model,
            arguments(place, **options),
            train_dataset=rows(),
            optimizers=(optimizer, None),
        )
        trainer.train(resume_from_checkpoint=str(place / "checkpoint-2") if resume else None)
        return state(model)

    assert same(trained(tmp_path, False), trained(tmp_path, True))


@refinements
@pytest.mark.parametrize(
    "name",
    [
        name if name in ("dct_adamw", "muon") else pytest.param(name, marks=pytest.mark.slow)
        for name in GENERAL
    ],
)
def test_refinements_take_an_optimizer(refinement, name):
    chosen = OPTIONS.get(name, {})
    if "adamw_ratio" in option_names(name):
        chosen = chosen | {"adamw_ratio": 0.5}
    options = {"optimizer": name, "optimizer_options": chosen}
    if name == "auon":
        options |= {"learning_rate": 0.3}
    given, plain = case("llama"), case("llama")
    for losses in given.refine(refinement, **options, **STAGES[refinement]).values():
        assert sum(losses[-2:]) < sum(losses[:2])
    plain.refine(refinement, **STAGES[refinement])
    assert same(state(given.compressed), state(plain.compressed)) == (name == "adamw")


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["dct_adamw", "soap"])
def test_a_stopped_refinement_ends_the_same(name, tmp_path, monkeypatch):
    """Also where the state cannot be stored: the stage then begins again."""
    monkeypatch.setattr(snapshots, "SECONDS_BETWEEN_SAVES", 0.0)
    options = {"optimizer": name, "epochs": 4}
    whole, stopped = case("llama"), case("llama")
    whole.refine("block_distillation", **options)
    context = RunContext(Cache(tmp_path), Stop(11))
    with pytest.raises(KeyboardInterrupt):
        stopped.refine("block_distillation", context, **options)
    stopped.refine("block_distillation", RunContext(Cache(tmp_path)), **options)
    assert same(state(stopped.compressed), state(whole.compressed))


@refinements
def test_wrong_optimizers_are_refused_before_any_work(refinement):
    for options, error, message in (
        ({"optimizer": "adam"}, UnknownNameError, "did you mean 'adamw'"),
        ({"optimizer": "sven"}, InputError, "residual of every example"),
        ({"optimizer_options": {"rank": 3}}, InputError, "no option 'rank'"),
    ):
        with pytest.raises(error, match=message):
            REFINEMENTS.options(refinement, options)
