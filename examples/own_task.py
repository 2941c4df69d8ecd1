"""A task of one's own in lm-evaluation-harness, offline, on a model before and after.

    pip install 'spectrim[eval]'
    python examples/own_task.py questions.jsonl reference smaller

One JSON object a line: {"query": "...", "choices": ["...", "..."], "gold": 0}. From the command
line: `spectrim evaluate reference smaller --lm-eval own --task-path DIRECTORY`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
import yaml

import spectrim

TASK = {
    "task": "own",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{query}}\nAnswer:",
    "doc_to_target": "gold",
    "doc_to_choice": "{{choices}}",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("questions", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--limit", type=int, default=None)
    given = parser.parse_args(arguments)
    results = {}
    with tempfile.TemporaryDirectory() as directory:
        files = {"data_files": {"test": str(given.questions.resolve())}}
        text = yaml.safe_dump(TASK | {"dataset_kwargs": files})
        (Path(directory) / "own.yaml").write_text(text)
        settings = spectrim.HarnessSettings(path=Path(directory), limit=given.limit)
        for name in given.models:
            model, tokenizer = spectrim.load(name, dtype=torch.float32)
            results[name] = spectrim.evaluate_harness(model, tokenizer, ["own"], settings)
            print(name, results[name])
    return results


if __name__ == "__main__":
    main()
