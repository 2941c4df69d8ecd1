"""The commands as other people's scripts call them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

import spectrim
from spectrim.checkpoint import load
from spectrim.pipeline.catalog import list_methods
from spectrim.pipeline.presets import PRESETS, load_recipe
from spectrim.planning import load_plan
from tests.cli.results import logits, ranks_in, same_tensors, tensors_in
from tests.tolerances import DENSE_EXPORT_ABSOLUTE

ROOT = Path(__file__).parents[2]
ANSWER = (
    r"[\d.]+ [kM]B -> [\d.]+ [kM]B \(-\d+%\); "
    r"perplexity x[\d.]+ measured \([+-][\d.e-]+ nats\), x[\d.]+ predicted; "
    r"KL divergence [\d.]+; same next token [\d.]+%"
)
"""The last line of a compression: what it saved and what it cost."""
SCRIPT = Path(sysconfig.get_path("scripts")) / "spectrim"
LOAD_AND_GENERATE = """
import sys
import spectrim
from transformers import AutoModelForCausalLM, AutoTokenizer
directory = sys.argv[1]
model, info = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
assert not info["missing_keys"] and not info["unexpected_keys"], info
assert not info["mismatched_keys"] and not info.get("error_msgs"), info
tokenizer = AutoTokenizer.from_pretrained(directory)
ids = tokenizer("Once upon", return_tensors="pt")
made = model.generate(**ids, max_new_tokens=5, min_new_tokens=5, do_sample=False)
assert made.shape[1] == ids["input_ids"].shape[1] + 5
"""


@pytest.mark.slow
def test_contract_in_fresh_processes(shelf, tmp_path):
    """The call that scripts make, then a program that knows only transformers and us."""
    out = tmp_path / "out"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    environment["SPECTRIM_CACHE"] = str(tmp_path / "cache")
    start = [str(SCRIPT)] if SCRIPT.is_file() else [sys.executable, "-m", "spectrim"]
    options = ["--budget", "0.6", "--method", "obd"]
    options += ["--allocation", "loss_optimal", "--layer", "pivoted"]
    data = ["--data", str(shelf / "text.txt")]
    command = [*start, "compress", str(shelf / "model"), "-o", str(out), *options, *data]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    ranks = ranks_in(out)
    assert ranks
    assert all(".layers." in name for name in ranks)
    loading = [sys.executable, "-c", LOAD_AND_GENERATE, str(out)]
    loaded = subprocess.run(
        loading, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert loaded.returncode == 0, loaded.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "out"]


def test_python_dash_m(monkeypatch, capsys):
    import runpy

    monkeypatch.setattr(sys, "argv", ["spectrim", "--version"])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_module("spectrim", run_name="__main__")
    assert not exit_.value.code
    assert capsys.readouterr().out.strip() == spectrim.__version__


def test_outputs_beside_the_weights(compress, tmp_path):
    done = compress("-o", "out", "--budget", 0.6)
    assert done.code == 0, done.err
    assert re.search(r"│ +(60|59\.9)%", done.out), done.out
    answer = done.out.splitlines()[-1]
    assert re.fullmatch(ANSWER, answer), answer
    last = done.err.splitlines()[-1]
    assert last.startswith("next: spectrim evaluate out --original ")
    out = tmp_path / "out"
    card = (out / "README.md").read_text()
    assert '\nname = "."' in card
    assert "| perplexity |" in card.split("## Measured")[1].split("## ")[0]
    assert str(tmp_path) not in card
    assert {
        "README.md",
        "config.json",
        "model.safetensors",
        "spectrim_plan.yaml",
        "spectrim_recipe.yaml",
        "tokenizer.json",
    } <= {path.name for path in out.iterdir()}
    plan = load_plan(out / "spectrim_plan.yaml")
    assert plan.ranks == ranks_in(out)
    assert plan.kept <= 0.6
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", ["pivoted", "lowrank"])
def test_the_stored_recipe_gives_the_same_result_again(cli, compress, shelf, tmp_path, kind):
    first = compress(
        "-o",
        "first",
        "--layer",
        kind,
        "--budget",
        0.55,
        "--set",
        "hessian_averaging.data_fraction=0.5",
    )
    assert first.code == 0, first.err
    again = cli(
        "compress", shelf / "model", "-o", "second",
        "--recipe", "first/spectrim_recipe.yaml", "--no-cache",
    )  # fmt: skip
    assert again.code == 0, again.err
    assert same_tensors(tmp_path / "first", tmp_path / "second")
    for name in ("config.json", "spectrim_recipe.yaml", "spectrim_plan.yaml"):
        first_text = (tmp_path / "first" / name).read_text()
        assert (tmp_path / "second" / name).read_text() == first_text


@pytest.mark.slow
def test_the_recipe_of_a_target_loss_gives_the_same_result_again(
    cli, compress, shelf, tmp_path
):
    done = compress("-o", "first", "--target-loss", "1e-5")
    assert done.code == 0, done.err
    plan = load_plan(tmp_path / "first" / "spectrim_plan.yaml")
    assert plan.predicted_loss <= 1e-5
    assert plan.kept < 0.9
    both = compress("-o", "both", "--target-loss", "1e-5", "--budget", 0.9)
    assert "choose one of --budget and --target-loss" in both.failed_with_one_line()
    again = cli(
        "compress", shelf / "model", "-o", "second", "--recipe", "first/spectrim_recipe.yaml"
    )
    assert again.code == 0, again.err
    assert same_tensors(tmp_path / "first", tmp_path / "second")


PLAIN = [n for n, r in PRESETS.items() if r.pruning is None and r.correction is None]


@pytest.mark.few(3)
@pytest.mark.parametrize("preset", PLAIN)
def test_presets(compress, tmp_path, preset):
    """With less training than the preset asks for."""
    steps = PRESETS[preset].to_dict()["refinement"]
    for step in steps:
        few = {"tokens": 64} if "tokens" in step["options"] else {}
        step |= {"options": step["options"] | few, "tokens": None}
    less = f"refinement={json.dumps(steps)}"
    done = compress("-o", "out", "--recipe", preset, "--budget", 0.7, "--set", less)
    assert done.code == 0, done.err
    recipe = load_recipe(str(tmp_path / "out" / "spectrim_recipe.yaml"))
    assert recipe.probe == PRESETS[preset].probe
    assert recipe.hessian_averaging == PRESETS[preset].hessian_averaging
    assert (recipe.budget, recipe.calibration.sequences) == (0.7, 8)


def test_the_command_line_wins_over_the_recipe_file(compress, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "method: svd_llm\nmethod_options: {damping: 0.5}\nallocation: uniform\nbudget: 0.9\n"
        "calibration: {sequences: 3}\nprobe: {joint: false}\n"
    )
    done = compress(
        "-o", "out", "--recipe", "mine.yaml", "--budget", 0.5, "--set", "probe.tokens=48",
        "--exclude", "down_proj",
    )  # fmt: skip
    assert done.code == 0, done.err
    recipe = load_recipe(str(tmp_path / "out" / "spectrim_recipe.yaml"))
    assert (recipe.method, recipe.method_options) == ("svd_llm", {"damping": 0.5})
    assert (recipe.allocation, recipe.budget) == ("uniform", 0.5)
    assert (recipe.calibration.sequences, recipe.probe.tokens) == (8, 48)
    assert recipe.probe.joint is False
    assert not any("down_proj" in name for name in ranks_in(tmp_path / "out"))


def test_set_and_no_measure(compress, tmp_path):
    done = compress(
        "-o", "out", "--no-probe", "--set", "method_options.damping=0.01",
        "--set", "save_dtype=bfloat16", "--set", "hessian_averaging.weight=0", "--budget", 0.7,
    )  # fmt: skip
    assert done.code == 0, done.err
    recipe = load_recipe(str(tmp_path / "out" / "spectrim_recipe.yaml"))
    assert recipe.method_options == {"damping": 0.01}
    assert (recipe.probe.per_layer, recipe.probe.joint) == (False, False)
    assert not recipe.averages_hessian
    dtypes = {t.dtype for n, t in tensors_in(tmp_path / "out").items() if "mask" not in n}
    assert dtypes == {torch.bfloat16}


@pytest.mark.slow
def test_overwrite_replaces_an_earlier_result_only_when_asked(compress, tmp_path):
    assert compress("-o", "out", "--budget", 0.6).code == 0
    assert "overwrite" in compress("-o", "out", "--budget", 0.5).failed_with_one_line()
    assert compress("-o", "out", "--budget", 0.5, "--overwrite").code == 0
    assert load_plan(tmp_path / "out" / "spectrim_plan.yaml").kept <= 0.5


def test_evaluate(cli, compress, shelf, tmp_path):
    assert compress("-o", "out", "--budget", 0.6).code == 0
    data = ("--data", shelf / "text.txt", "--tokens", 400, "--length", 64)
    models = (shelf / "model", "out")
    done = cli("evaluate", *models, *data, "--original", shelf / "model", "--json")
    assert done.code == 0, done.err
    dense, smaller = (json.loads(done.out)[str(name)] for name in models)
    assert abs(dense["kl_divergence"]) < 1e-6 < smaller["kl_divergence"]
    assert smaller["parameters"] < dense["parameters"]
    assert smaller["disk_bytes"] < dense["disk_bytes"]
    assert all(figures["perplexity"] > 1 for figures in (dense, smaller))
    table = cli("evaluate", *models, *data)
    assert table.code == 0, table.err
    rows = [line.strip("│ ").split("│") for line in table.out.splitlines() if "│" in line]
    assert [row[0].strip() for row in rows][:4] == [
        "metric",
        "perplexity",
        "perplexity ratio",
        "size",
    ]
    assert rows[2][1].strip() == "x1.000"
    assert rows[3][1].strip().endswith(("kB", "MB"))
    assert sum("bytes" in line for line in table.out.splitlines()) == 0
    assert "KL divergence" not in table.out


@pytest.mark.slow
def test_evaluate_has_one_default(cli, shelf):
    """The same text, the same figure, from Python and from the command line."""
    model, tokenizer = load(shelf / "model", dtype=torch.float32)
    long = shelf / "long.txt"
    if not long.exists():
        long.write_text((shelf / "text.txt").read_text() * 30)
    ours = spectrim.evaluate(model, tokenizer, str(long))
    done = cli("evaluate", shelf / "model", "--data", long, "--json")
    theirs = json.loads(done.out)[str(shelf / "model")]
    assert ours["predicted_tokens"] == theirs["predicted_tokens"] <= 20_000
    assert ours["perplexity"] == theirs["perplexity"]


def test_ls_names_every_entry(cli):
    shown, machine = cli("ls"), cli("ls", "--json")
    assert shown.code == machine.code == 0
    listed = json.loads(machine.out)
    assert listed == list_methods()
    for kind, entries in listed.items():
        assert kind in shown.out
        assert entries
        for entry in entries:
            assert entry["name"] in shown.out
            assert entry["summary"]


def test_export(cli, compress, tmp_path):
    assert compress("-o", "out", "--budget", 0.6).code == 0
    before = logits(tmp_path / "out")
    for option, out in (("--dense", "dense"), ("--self-contained", "own")):
        done = cli("export", "out", "-o", out, option)
        assert done.code == 0, done.err
    assert (logits(tmp_path / "dense") - before).abs().max() <= DENSE_EXPORT_ABSOLUTE
    config = json.loads((tmp_path / "dense" / "config.json").read_text())
    assert "quantization_config" not in config
    own = json.loads((tmp_path / "own" / "config.json").read_text())
    assert "AutoModelForCausalLM" in own["auto_map"]
    assert list((tmp_path / "own").glob("*.py"))


def test_activate(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert cli("activate").code == 0
    assert len(list(tmp_path.glob("*.pth"))) == 1
    assert "removed" in cli("activate", "--remove").err
    assert not list(tmp_path.iterdir())
    assert "not active" in cli("activate", "--remove").err


def test_help_names_every_command(cli):
    shown = cli("--help")
    assert shown.code == 0
    commands = (
        "compress",
        "quantize",
        "plan",
        "evaluate",
        "bench",
        "ls",
        "export",
        "activate",
    )
    for command in commands:
        assert command in shown.out
        assert cli(command, "--help").code == 0


@pytest.mark.slow
def test_quantized_factors_in_one_checkpoint(cli, compress, tmp_path):
    chosen = ("--quantize", "int8", "--set", "quantization.backend=rtn", "--budget", 0.25)
    done = compress("-o", "out", *chosen)
    assert done.code == 0, done.err
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["inner"]["base"] == "rtn"
    assert config["provenance"]["plan"]["kept"] <= 0.25
    shown = cli("evaluate", "out", "--data", "python:held_out", "--tokens", 500, "--json")
    assert shown.code == 0, shown.err
    assert json.loads(shown.out)["out"]["perplexity"] > 1
    idle = compress("-o", "idle", *chosen[:-1], 0.8)
    assert idle.code == 0, idle.err
    kept = load_plan(tmp_path / "idle" / "spectrim_plan.yaml").kept
    assert f"ranks fall below budget {kept:.2f}" in idle.err
    assert not load_plan(tmp_path / "idle" / "spectrim_plan.yaml").ranks
    wrong = compress("-o", "other", "--quantize", "int7")
    assert (
        "expected int8, int4, int4-gptq, nf4 (did you mean 'int8'?)"
        in wrong.failed_with_one_line()
    )


def test_a_compressor_that_is_missing_is_told_before_the_work(compress, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    message = compress("-o", "out", "--quantize", "int8").failed_with_one_line()
    assert "spectrim[torchao]" in message
    assert not Path("out").exists()
