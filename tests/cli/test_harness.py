"""lm-evaluation-harness on real task files, against the same accuracy computed by hand."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml

import spectrim
from spectrim.checkpoint import save_compressed
from spectrim.errors import InputError
from spectrim.evaluation._harness import figures
from tests.checkpoint.compressing import compress as by_svd
from tests.shared_assets import shared_data, shared_model

needs_harness = pytest.mark.skipif(
    find_spec("lm_eval") is None, reason="lm-eval is not installed (extra spectrim[eval])"
)
LIMIT = 24
FILES = {
    "arc_local": ("arc", "arc_easy.jsonl"),
    "piqa_local": ("piqa", "piqa_with_labels.jsonl"),
}


@pytest.fixture(scope="module")
def task_files(tmp_path_factory) -> Path:
    """Task files over the local questions; the harness keeps nothing outside."""
    root = tmp_path_factory.mktemp("tasks")
    for name, place in FILES.items():
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(shared_data(*place))}},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{query}}\nAnswer:",
            "doc_to_target": "gold",
            "doc_to_choice": "{{choices}}",
            "metric_list": [
                {"metric": metric, "aggregation": "mean", "higher_is_better": True}
                for metric in ("acc", "acc_norm")
            ],
        }
        (root / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return root


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """A real small model, dense and compressed."""
    dense = shared_model("stories260K")
    model, tokenizer = spectrim.load(dense, dtype=torch.float32)
    config = by_svd(model, "pivoted", rank=24)
    out = tmp_path_factory.mktemp("models") / "smaller"
    save_compressed(model, tokenizer, out, config)
    return {"dense": dense, "compressed": out}


@torch.no_grad()
def accuracy(directory: Path, name: str) -> float:
    """Share of questions whose right choice has the highest log-likelihood."""
    model, tokenizer = spectrim.load(directory, dtype=torch.float32)
    right = 0
    lines = shared_data(*FILES[name]).read_text().splitlines()[:LIMIT]
    for example in map(json.loads, lines):
        prompt = f"{example['query']}\nAnswer:"
        before = len(tokenizer(prompt)["input_ids"])
        scores = []
        for choice in example["choices"]:
            ids = tokenizer(f"{prompt} {choice}", return_tensors="pt")["input_ids"]
            logits = model(ids).logits[0, before - 1 : -1].log_softmax(-1)
            scores.append(float(logits.gather(1, ids[0, before:, None]).sum()))
        right += max(range(len(scores)), key=scores.__getitem__) == example["gold"]
    return right / LIMIT


@needs_harness
def test_dense_and_compressed_in_one_table(cli, models, task_files, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    asked = ("--lm-eval", ",".join(FILES), "--task-path", task_files, "--limit", LIMIT)
    done = cli("evaluate", *models.values(), *asked, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    for directory in models.values():
        shown = found[str(directory)]
        assert "perplexity" not in shown
        for name in FILES:
            assert shown[f"{name} acc"] == accuracy(directory, name)
            assert shown[f"{name} acc stderr"] > 0
    assert "it/s" not in done.err, "no progress bar where nobody sees it"
    assert "fatal" not in done.err, "git is not asked about a directory that is none of its"


@needs_harness
def test_a_task_that_is_not_known(cli, shelf, task_files):
    asked = ("--lm-eval", "arc_local,arc_esay", "--task-path", task_files)
    message = cli("evaluate", shelf / "model", *asked).failed_with_one_line()
    assert "'arc_esay'" in message
    assert "arc_easy" in message


def test_a_directory_of_tasks_that_is_not_there(cli, shelf):
    asked = ("--lm-eval", "arc_local", "--task-path", "nowhere")
    assert "nowhere" in cli("evaluate", shelf / "model", *asked).failed_with_one_line()


@pytest.mark.skipif(find_spec("lm_eval") is not None, reason="lm-eval is installed")
def test_a_harness_that_is_missing():
    with pytest.raises(InputError, match=r"spectrim\[eval\]"):
        spectrim.evaluate_harness(None, None, ["arc_easy"])


def test_names_of_figures():
    results = {
        "gsm8k": {
            "alias": "gsm8k",
            "sample_len": 8,
            "exact_match,strict-match": 0.5,
            "exact_match_stderr,strict-match": 0.25,
            "acc,none": 1,
            "acc_stderr,none": "N/A",
        }
    }
    assert figures(results) == {
        "gsm8k exact_match (strict-match)": 0.5,
        "gsm8k exact_match (strict-match) stderr": 0.25,
        "gsm8k acc": 1.0,
    }
