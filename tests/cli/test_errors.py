"""What goes wrong for a user: one line of `error:`, code 2, nothing left behind."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from spectrim.pipeline import calibrate
from tests.tiny_models import tiny_llama, tiny_tokenizer

PLACES = ("out", "parent/out")


def left_behind(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def broken_model(shelf: Path, directory: Path) -> Path:
    """A copy of the tiny model, to be damaged."""
    return Path(shutil.copytree(shelf / "model", directory))


BAD_OPTIONS = {
    "budget 0": (
        ["--budget", "0"],
        "budget: Input should be greater than 0, got 0.0 (Fraction of the layers' weights",
    ),
    "budget 1.5": (
        ["--budget", "1.5"],
        "budget: Input should be less than or equal to 1, got 1.5 (",
    ),
    "negative budget": (
        ["--budget", "-0.5"],
        "budget: Input should be greater than 0, got -0.5 (",
    ),
    "nan budget": (["--budget", "nan"], "budget: Input should be a finite number, got nan ("),
    "budget of words": (["--budget", "abc"], "Invalid value for '--budget'"),
    "tiny budget": (["--budget", "0.001"], "below the smallest possible model"),
    "method": (
        ["--method", "obdd"],
        "unknown method 'obdd' (did you mean 'obd'?); available: afm",
    ),
    "allocation": (["--allocation", "best"], "unknown allocation 'best'; available: "),
    "layer": (["--layer", "dense"], "unknown layer 'dense'; available: lowrank, pivoted"),
    "recipe": (["--recipe", "worst"], "expected a YAML file or one of default, fast"),
    "labels": (["--labels", "gold"], "calibration.labels: Input should be 'data' or 'sampled'"),
    "include": (["--include", "no_such"], "pattern 'no_such' matches no linear layer"),
    "pattern": (["--include", "("], "'(' is not a regular expression"),
    "exclude all": (["--exclude", "."], "none left by the patterns"),
    "sequences": (["--sequences", "0"], "calibration.sequences: "),
    "length": (["--length", "1"], "calibration.length: "),
    "rank multiple": (["--rank-multiple", "0"], "rank_multiple: "),
    "set without value": (["--set", "budget"], "--set budget: expected field=value"),
    "set unknown": (["--set", "colour=red"], "colour: "),
    "set unknown inside": (
        ["--set", "hessian_averaging.color=red"],
        "hessian_averaging.color: ",
    ),
    "set too deep": (["--set", "a.b.c=1"], "--set a.b.c: a recipe has no such field"),
    "set broken": (["--set", "budget=[1"], "'[1' is not a value"),
    "method option": (["--set", "method_options.dumping=1"], "dumping"),
    "field of a text file": (["--field", "text"], "has no field 'text'"),
    "target loss": (["--target-loss", "0"], "target loss 0.0 must be above 0"),
    "shards of one process": (["--fsdp"], "--fsdp and one process cannot be combined: "),
    "shards and parts": (
        ["--fsdp", "--memory", "6GiB"],
        "--fsdp and --memory cannot be combined: one shares weights",
    ),
    "missing plan": (["--plan", "none.yaml"], "no plan file none.yaml"),
    "unknown option": (["--colour", "red"], "No such option: --colour"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_options(compress, tmp_path, name):
    options, message = BAD_OPTIONS[name]
    assert message in compress("-o", "out", *options).failed_with_one_line()
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["compress"], "Missing argument"),
        (["compress", "model"], "Missing option '-o'"),
        (
            ["export", "out", "-o", "x"],
            "choose one of --dense, --self-contained, --onnx",
        ),
        (["export", "nowhere", "-o", "x", "--dense"], "nowhere"),
        (["evaluate", "./nowhere"], "there is no directory ./nowhere"),
        (["plan", "./nowhere"], "there is no directory ./nowhere"),
    ],
)
def test_usage(cli, tmp_path, arguments, message):
    assert message in cli(*arguments).failed_with_one_line()
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("command", ["compress", "plan", "explore", "bench", "quantize"])
def test_a_wrong_pattern_is_told_before_the_weights_are_read(cli, shelf, monkeypatch, command):
    monkeypatch.setattr("spectrim.pipeline.loaded_model.load", None)
    output = () if command == "plan" else ("-o", "out")
    methods = ("--methods", "svd/uniform/lowrank") if command == "bench" else ()
    data = ("--data", shelf / "text.txt", "--include", "no_such")
    done = cli(command, shelf / "model", *output, *methods, *data)
    assert "pattern 'no_such' matches no linear layer" in done.failed_with_one_line()


def test_the_nearest_value_of_a_choice(cli, shelf):
    done = cli("evaluate", shelf / "model", "--rows", "pakced")
    assert "(did you mean 'packed'?)" in done.failed_with_one_line()


def test_gguf_is_answered(cli):
    told = cli("export", "out", "-o", "x", "--gguf").failed_with_one_line()
    assert "spectrim export out --dense -o x" in told
    assert "convert_hf_to_gguf.py" in told


def test_no_arguments_show_the_help(cli):
    shown = cli()
    assert shown.code == 2
    assert "compress" in shown.out + shown.err


@pytest.mark.parametrize("model", ["./nowhere", "/nowhere/at/all", "nowhere-model"])
def test_missing_model(cli, shelf, tmp_path, model):
    done = cli("compress", model, "-o", "out", "--data", shelf / "text.txt")
    assert model in done.failed_with_one_line()
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("none.txt", None, "none.txt"),
        ("empty.txt", "", "holds no text"),
        ("blank.txt", " \n\n ", "holds no text"),
        ("short.txt", "too short", "expected at least 24"),
        ("what.is.this", "text", "cannot tell what text"),
        ("broken.jsonl", '{"text": "a"', "broken.jsonl"),
    ],
)
def test_unusable_text(compress, tmp_path, file, text, message):
    if text is not None:
        (tmp_path / file).write_text(text)
    before = left_behind(tmp_path)
    assert message in compress("-o", "out", "--data", file).failed_with_one_line()
    assert left_behind(tmp_path) == before


def test_weights_that_are_not_finite(cli, shelf, tmp_path):
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = float("nan")
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    before = left_behind(tmp_path)
    done = cli("compress", "./model", "-o", "out", "--data", shelf / "text.txt")
    line = done.failed_with_one_line()
    assert "model.layers.1.mlp.up_proj.weight (64, 32) has 1 values" in line
    assert left_behind(tmp_path) == before


def test_tokenizer_with_more_ids_than_the_model(cli, shelf, tmp_path):
    model = tiny_llama()
    model.resize_token_embeddings(40)
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    before = left_behind(tmp_path)
    done = cli("compress", "./model", "-o", "out", "--data", shelf / "text.txt")
    assert "beyond the model's vocabulary of 40" in done.failed_with_one_line()
    assert left_behind(tmp_path) == before


def test_model_without_a_tokenizer(cli, shelf, tmp_path):
    tiny_llama().save_pretrained(tmp_path / "model")
    done = cli("compress", "./model", "-o", "out", "--data", shelf / "text.txt")
    assert "has no tokenizer" in done.failed_with_one_line()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour: red\n", "colour: "),
        ("budget: [1\n", "mine.yaml cannot be read"),
        ("- budget\n", "must hold a mapping"),
        ("", "must hold a mapping"),
        ("method: 3\n", "method: "),
        ("calibration: {sequences: many}\n", "calibration.sequences: "),
        ("method: nothing\n", "unknown method 'nothing'"),
        ("budget: 7\n", "budget: Input should be less than or equal to 1, got 7"),
    ],
)
def test_recipe_files(compress, tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    done = compress("-o", "out", "--recipe", "mine.yaml")
    assert message in done.failed_with_one_line()
    assert left_behind(tmp_path) == ["mine.yaml"]


def edited_plan(plan, tmp_path, change) -> Path:
    file = tmp_path / "plan.json"
    done = plan("-o", file)
    assert done.code == 0, done.err
    (tmp_path / "plan.svg").unlink()
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))
    return file


def _rename(values):
    values["layers"] = {n.replace(".mlp.", ".ffn."): v for n, v in values["layers"].items()}


def _reshape(values):
    values["layers"]["model.layers.0.mlp.up_proj"]["shape"] = [640, 320]


def _absurd(values):
    values["layers"]["model.layers.0.mlp.up_proj"]["rank"] = 10**6


def _nothing(values):
    values["layers"]["model.layers.0.mlp.up_proj"]["rank"] = 0


def _word(values):
    values["layers"]["model.layers.0.mlp.up_proj"]["rank"] = "high"


def _field(values):
    values["colour"] = "red"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_rename, "the plan contains layer 'model.layers.0.ffn.gate_proj'"),
        (_reshape, "'model.layers.0.mlp.up_proj' has shape (640, 320) in the plan"),
        (_absurd, "rank 1000000 is above 32"),
        (_nothing, "greater than or equal to 1"),
        (_word, "valid integer"),
        (_field, "colour"),
    ],
)
def test_plans_that_do_not_fit(plan, compress, tmp_path, change, message):
    file = edited_plan(plan, tmp_path, change)
    assert message in compress("-o", "out", "--plan", file).failed_with_one_line()
    assert left_behind(tmp_path) == ["plan.json"]


def test_a_plan_for_another_model_is_refused_before_the_calibration(
    plan, compress, tmp_path, monkeypatch
):
    file = edited_plan(plan, tmp_path, _rename)
    monkeypatch.setattr(calibrate, "calibrate_steps", lambda *a: pytest.fail("calibrated"))
    compress("-o", "out", "--plan", file, "--no-cache").failed_with_one_line()


def test_output_with_foreign_files(compress, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    for more in ([], ["--overwrite"]):
        line = compress("-o", "out", *more).failed_with_one_line()
        assert "holds files that spectrim did not write" in line
    assert left_behind(tmp_path) == ["out", "out/thesis.tex"]


def test_output_that_is_a_file(compress, tmp_path):
    (tmp_path / "out").write_text("mine")
    assert "expected a directory" in compress("-o", "out").failed_with_one_line()
    assert "out" in compress("-o", "out/below").failed_with_one_line()
    assert left_behind(tmp_path) == ["out"]


def full_disk(*arguments: object, **options: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("place", PLACES)
def test_full_disk_where_the_model_is_saved(compress, tmp_path, monkeypatch, place):
    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full_disk)
    line = compress("-o", place, "--budget", 0.6).failed_with_one_line()
    assert "no space left on the disk" in line
    assert not [path for path in left_behind(tmp_path) if path != "parent"]


@pytest.mark.parametrize("kind", ["calibration", "decomposition"])
def test_full_disk_where_results_are_kept(compress, tmp_path, monkeypatch, kind):
    """The real writer, failing as safetensors does."""

    def write(tensors, path, metadata):
        if kind in path.name:
            path.write_bytes(b"half")
            full_disk()
        save_file(tensors, path, metadata)

    monkeypatch.setattr("spectrim.runtime.files.save_file", write)
    done = compress("-o", "out", "--cache", "kept")
    line = done.failed_with_one_line()
    assert "the disk is full" in line
    assert kind in line
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "kept").glob("*.tmp"))
    assert not list((tmp_path / "kept").glob(f"{kind}*"))


def test_full_disk_for_plan_files(plan, tmp_path, monkeypatch):
    monkeypatch.setattr("spectrim.runtime.files.os.replace", full_disk)
    assert "the disk is full" in plan("-o", "plan.yaml").failed_with_one_line()
    assert left_behind(tmp_path) == []
