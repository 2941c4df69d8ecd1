"""Specialising from the command line: what is written, and what bad input says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

QUICK = (
    *("--set", "pruning.steps=4", "--set", "pruning.prune_steps=2"),
    *("--set", "pruning.batch_size=4", "--set", "pruning.scoring_examples=8"),
    *("--set", "refinement=[{name: finetune, options: {steps: 2}}]"),
    *("--set", "calibration.sequences=8", "--budget", "0.4"),
)


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("task") / "task.jsonl"
    lines = [{"question": f"what follows {n}?", "reply": str(n + 1)} for n in range(24)]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


FIELDS = ("--set", "task.prompt_field=question", "--set", "task.answer_field=reply")


@pytest.mark.few(1)
@pytest.mark.parametrize("preset", ["task", "bsi", "basel"])
def test_a_model_for_one_task(cli, shelf, task, tmp_path, preset):
    probes = ("--set", "pruning.importance_options={probes: 1}")
    more = probes if preset == "bsi" else ()
    done = cli(
        *("compress", shelf / "model", "--recipe", preset, "--task", task, "-o", "out"),
        *(*FIELDS, *QUICK, *more),
    )
    assert done.code == 0, done.err
    lines = Path("out/spectrim_events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    assert [event["number"] for event in events] == [1, 2]
    assert events[-1]["kept_after"] <= 0.4
    assert {"removed", "predicted", "measured", "loss", "seconds"} <= events[0].keys()
    assert "the task" in Path("out/README.md").read_text()
    shown = cli("evaluate", "out", "--task", f"jsonl:{task}", "--json")
    assert shown.code == 2, "the fields are not the usual ones"
    usual = tmp_path / "usual.jsonl"
    usual.write_text(task.read_text().replace('"reply"', '"answer"'))
    shown = cli("evaluate", "out", "--task", usual, "--json")
    assert shown.code == 0, shown.err
    figures = json.loads(shown.out)["out"]
    assert figures["count"] == 24
    assert re.search(r"count\s+│\s+24 ", cli("evaluate", "out", "--task", usual).out)
    assert 0 <= figures["accuracy"] <= 1
    assert "perplexity" not in figures


@pytest.mark.slow
def test_a_task_also_guides_a_closed_form(cli, shelf, task):
    done = cli(
        *("compress", shelf / "model", "--task", task, "-o", "out", "--budget", "0.6"),
        *(*FIELDS, "--sequences", "8", "--no-probe"),
    )
    assert done.code == 0, done.err
    assert not Path("out/spectrim_events.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--task"),
        (("--task", "missing.jsonl"), "missing.jsonl"),
        (("--task", "empty.jsonl"), "empty.jsonl"),
        (("--task", "broken.jsonl"), "line 2"),
        (("--task", "odd.jsonl"), "prompt_field"),
        (("--task", "good.jsonl", "--plan", "plan.yaml"), "--budget"),
        (("--task", "good.jsonl", "--target-loss", "0.1"), "--budget"),
        (("--task", "good.jsonl", "--budget", "0.0001"), "budget"),
        (("--task", "good.jsonl", "--set", "pruning.importance=guess"), "guess"),
        (("--task", "good.jsonl", "--set", "pruning.prune_steps=0"), "prune_steps"),
        (("--task", "good.jsonl", "--method", "afm"), "svd, svd_llm or obd"),
        (("--task", "good.jsonl", "--set", "task.labels=some"), "labels"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(cli, shelf, arguments, words):
    good = json.dumps({"prompt": "one and one is ", "answer": "two"}) + "\n"
    Path("good.jsonl").write_text(good * 8)
    Path("empty.jsonl").write_text("")
    Path("broken.jsonl").write_text(good + "{\n")
    Path("odd.jsonl").write_text(json.dumps({"left": "a", "right": "b"}) + "\n")
    done = cli(
        *("compress", shelf / "model", "--recipe", "task", "-o", "out"), *QUICK, *arguments
    )
    assert words in done.failed_with_one_line()
    assert not Path("out").exists()
