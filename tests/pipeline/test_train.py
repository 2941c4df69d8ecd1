"""Training from scratch: every way of storing the weights, saved, loaded and resumed."""

from __future__ import annotations

import json

import pytest
import torch

from spectrim.checkpoint import export_dense, load
from spectrim.errors import InputError, ModelError, UnknownNameError
from spectrim.pipeline.train import new_model, save_trained, train
from spectrim.pipeline.train_settings import TrainSettings, assigned
from spectrim.runtime import snapshots
from spectrim.runtime.cache import Cache
from spectrim.runtime.context import RunContext
from spectrim.training.pretraining import PRETRAINING
from tests.contracts.test_refinements import Stop, same, state
from tests.runs import text_file
from tests.tiny_models import tiny_gpt2, tiny_llama, tiny_tokenizer, tiny_tokens

METHODS = PRETRAINING.names()
OPTIONS = {
    "lowrank": ("rank_fraction=0.5",),
    "sltrain": ("rank_fraction=0.5",),
    "sst": ("vectors=4", "interval=5"),
    "maestro": ("penalty=1e-3", "threshold=0.2"),
}
KINDS = {"lowrank": "lowrank", "sltrain": "sparse_plus_lowrank", "maestro": "lowrank"}
methods = pytest.mark.parametrize("method", METHODS)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    root = tmp_path_factory.mktemp("shelf")
    tiny_llama().save_pretrained(root / "model")
    tiny_tokenizer().save_pretrained(root / "model")
    text_file(root / "text.txt")
    return root


def settings(shelf, method: str = "full", **given) -> TrainSettings:
    size = {"steps": 24, "batch_size": 8, "sequences": 32, "length": 16}
    rate = {"learning_rate": 3e-3} if "optimizer" not in given else {}
    options = {"method": method, "method_option": OPTIONS.get(method, ())}
    text = {"data": str(shelf / "text.txt")}
    return TrainSettings(**(text | size | rate | options | given))


@pytest.mark.few(2)
@methods
def test_it_learns_and_is_what_is_saved(method, shelf, tmp_path):
    result = train(shelf / "model", settings(shelf, method))
    first, last = result.record["losses"]
    assert last < first - 0.1
    kinds = {entry["kind"] for entry in result.layers.values()}
    assert kinds == ({KINDS[method]} if method in KINDS else set())
    save_trained(result, tmp_path / "out")
    loaded, tokenizer = load(tmp_path / "out")
    assert tokenizer is not None
    assert same(state(loaded), state(result.model))
    assert all(p.requires_grad for p in result.model.parameters())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert ("quantization_config" in config) == bool(kinds)


def test_sparse_plus_lowrank_exports_as_a_dense_model(shelf, tmp_path):
    result = train(shelf / "model", settings(shelf, "sltrain"))
    save_trained(result, tmp_path / "out")
    export_dense(tmp_path / "out", tmp_path / "dense")
    dense = load(tmp_path / "dense")[0]
    with torch.no_grad():
        away = dense(tiny_tokens()).logits - result.model(tiny_tokens()).logits
    assert away.abs().max() < 1e-5
    assert type(dense.model.layers[0].mlp.up_proj) is torch.nn.Linear


@pytest.mark.slow
@methods
def test_a_stopped_run_ends_the_same(method, shelf, tmp_path, monkeypatch):
    monkeypatch.setattr(snapshots, "SECONDS_BETWEEN_SAVES", 0.0)
    given = settings(shelf, method, steps=14)
    whole = train(shelf / "model", given)
    cache = Cache(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(shelf / "model", given, RunContext(cache, Stop(8)))
    again = train(shelf / "model", given, RunContext(cache))
    assert same(state(again.model), state(whole.model))
    assert again.record == whole.record
    finished = train(shelf / "model", given, RunContext(cache, Stop(0)))
    assert same(state(finished.model), state(whole.model))
    assert finished.layers == whole.layers


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["dct_adamw", "muon", "galore", "hybrid_auon"])
def test_optimizers_by_name(optimizer, shelf):
    result = train(shelf / "model", settings(shelf, optimizer=optimizer))
    first, last = result.record["losses"]
    assert last < first - 0.05
    assert result.record["optimizer"] == optimizer


def test_a_start_is_of_the_seed(shelf):
    first, same_one, other = (state(new_model(shelf / "model", seed)) for seed in (0, 0, 1))
    assert same(first, same_one)
    assert not same(first, other)


def test_maestro_shrinks_to_smaller_layers(shelf):
    dense = sum(p.numel() for p in tiny_llama().parameters())
    result = train(shelf / "model", settings(shelf, "maestro"))
    assert result.record["parameters"] < dense
    assert all(entry["rank"] >= 1 for entry in result.layers.values())


def test_wrong_settings_are_named(shelf, tmp_path):
    for given, error, message in (
        ({"data": None}, InputError, "--data"),
        ({"method": "lorank"}, UnknownNameError, "did you mean 'lowrank'"),
        ({"optimizer": "sven"}, InputError, "residual of every example"),
        ({"optimizer_option": ("rank=3",)}, InputError, "no option 'rank'"),
        ({"method": "sst", "method_option": ("vectors=0",)}, InputError, "vectors"),
        ({"method": "lowrank", "method_option": ("rank_fraction=2",)}, InputError, "rank_frac"),
    ):
        with pytest.raises(error, match=message):
            train(shelf / "model", settings(shelf, **({"method_option": ()} | given)))
    with pytest.raises(InputError, match="expected NAME=VALUE"):
        assigned(("vectors",), "--method-option")
    assert assigned(("penalty=1e-5", "basis=dct"), "") == {"penalty": 1e-5, "basis": "dct"}
    tiny_gpt2().save_pretrained(tmp_path / "gpt2")
    given = settings(shelf, "lowrank", tokenizer=str(shelf / "model"))
    with pytest.raises(ModelError, match="Conv1D"):
        train(tmp_path / "gpt2", given)
    with pytest.raises(InputError, match="no tokenizer"):
        train(tmp_path / "gpt2", settings(shelf))
