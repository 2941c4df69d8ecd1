"""Every tracker keeps what a real run tells it, as its own library reads it back."""

from __future__ import annotations

import json
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from accelerate.tracking import GeneralTracker

from spectrim.errors import InputError, UnknownNameError
from spectrim.runtime import tracking
from spectrim.runtime.context import null_logger
from spectrim.runtime.tracking import (
    TrackedRun,
    open_tracker,
    with_stage_times,
)

SETTINGS = {"budget": 0.5, "calibration": {"data": "text", "length": None}, "include": []}
RUN = TrackedRun("compress model", SETTINGS)


def needs(package: str) -> pytest.MarkDecorator:
    reason = f"{package} is not installed (extra spectrim[trackers])"
    return pytest.mark.skipif(find_spec(package) is None, reason=reason)


def tell_all(name: str) -> None:
    """Two series of three steps, and a figure of the whole run."""
    with open_tracker(name, RUN) as log_metrics:
        for series in ("loss/next token", "loss/left+right"):
            for step in (1, 2, 3):
                log_metrics({series: 3.0 / step}, step)
        log_metrics({"kept": 0.5}, None)


def test_settings_are_flat():
    assert RUN.flat == {"budget": 0.5, "calibration.data": "text"}


@needs("trackio")
def test_trackio(tmp_path, monkeypatch, capfd):
    import trackio
    import trackio.sqlite_storage

    monkeypatch.setenv("TRACKIO_PROJECT", "tests")
    for module in (trackio, trackio.sqlite_storage, trackio.utils):
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path)
    tell_all("trackio")
    assert capfd.readouterr().out == "", "results stand alone on standard output"
    [run] = trackio.Api().runs("tests")
    assert run.name == RUN.name
    assert run.config["calibration.data"] == "text"
    logged = trackio.sqlite_storage.SQLiteStorage.get_logs("tests", run.name)
    series = [(entry["step"], entry["loss/next token"]) for entry in logged[:3]]
    assert series == [(1, 3.0), (2, 1.5), (3, 1.0)]
    assert logged[-1]["kept"] == 0.5


@needs("mlflow")
def test_mlflow(tmp_path, monkeypatch, capfd):
    pytest.importorskip("sqlalchemy", reason="mlflow's local store needs SQLAlchemy")
    import mlflow

    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    tell_all("mlflow")
    assert capfd.readouterr().out == ""
    client = mlflow.MlflowClient()
    [experiment] = [e for e in client.search_experiments() if e.name == "spectrim"]
    [run] = client.search_runs([experiment.experiment_id])
    assert run.data.params == {"budget": "0.5", "calibration.data": "text"}
    assert run.data.metrics["kept"] == 0.5
    history = client.get_metric_history(run.info.run_id, "loss/left_right")
    assert [(each.step, each.value) for each in history] == [(1, 3.0), (2, 1.5), (3, 1.0)]
    assert run.info.status == "FINISHED"
    with pytest.raises(KeyboardInterrupt), open_tracker("mlflow", TrackedRun("stopped")):
        raise KeyboardInterrupt
    status = {r.info.run_name: r.info.status for r in client.search_runs(["1"])}
    assert status == {RUN.name: "FINISHED", "stopped": "FAILED"}


@needs("wandb")
def test_wandb_offline(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    tell_all("wandb")
    assert capfd.readouterr().out == ""
    [kept] = tmp_path.rglob("run-*.wandb")
    wanted = {b"loss/next token", b"loss/left+right step", b"kept", b"calibration.data"}
    for _ in range(100):  # the library's own process writes it, and is not waited for
        held = kept.read_bytes()
        if all(what in held for what in wanted):
            return
        time.sleep(0.1)
    raise AssertionError([what for what in wanted if what not in held])


def test_a_tracker_that_is_missing(monkeypatch):
    for name in ("mlflow", "trackio", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(InputError, match=r"spectrim\[trackers\]"), open_tracker(name, RUN):
            pass
    with pytest.raises(UnknownNameError, match=r"mlflow, .*trackio, wandb"):
        open_tracker("notebook", RUN).__enter__()
    with open_tracker(None, RUN) as log_metrics:
        assert log_metrics is null_logger


def test_a_tracker_that_cannot_start(monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setattr("wandb.init", lambda **given: 1 / 0)
    with pytest.raises(InputError, match="wandb cannot start a run: division"):
        open_tracker("wandb", RUN).__enter__()


def test_seconds_of_stages():
    told = []
    track = with_stage_times(
        lambda items, what, total: items, lambda figures, step: told.append(figures)
    )
    for what in ("selecting 1/8, kept 0.9", "selecting 2/8, kept 0.8", "refining block 3"):
        assert list(track(range(2), what, 2)) == [0, 1]
    assert [list(figures) for figures in told] == [
        ["seconds/selecting"],
        ["seconds/selecting"],
        ["seconds/refining block 3"],
    ]


class Memory(GeneralTracker):
    """A tracker that remembers."""

    name = "memory"
    requires_logging_directory = False
    main_process_only = False
    tracker = None

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[dict[str, float], int | None]] = []
        self.settings: list[dict] = []
        self.ends = 0

    def store_init_configuration(self, values) -> None:
        self.settings.append(values)

    def log(self, values, step=None, **kwargs) -> None:
        self.told.append((dict(values), step))

    def finish(self) -> None:
        self.ends += 1


def remember(monkeypatch) -> Memory:
    """What is made by the name `memory`."""
    memory = Memory()
    made = lambda run_name: memory  # noqa: E731
    made.requires_logging_directory = False
    monkeypatch.setattr(tracking, "_classes", lambda: {"memory": lambda: made})
    return memory


def test_a_tracker_of_the_environment(compress, monkeypatch):
    memory = remember(monkeypatch)
    monkeypatch.setenv("SPECTRIM_TRACK", "memory")
    assert compress("-o", "out", "--recipe", "fast", "--no-report").code == 0
    assert memory.ends == 1
    assert memory.settings[0]["budget"] == 0.8
    recipe = yaml.safe_load(Path("out/spectrim_recipe.yaml").read_text())
    assert "track" not in recipe, "it is of the run, not of the result"


def test_commands_tell(cli, compress, shelf, monkeypatch):
    """compress, finetune and bench: losses by step, seconds by stage, final figures."""
    memory = remember(monkeypatch)
    small = ("--sequences", 8, "--length", 24, "--data", shelf / "text.txt", "--no-cache")
    done = compress("-o", "smaller", "--recipe", "fast", "--no-cache", "--track", "memory")
    assert done.code == 0, done.err
    assert memory.ends == 1
    told = {name for figures, _ in memory.told for name in figures}
    assert {"kept", "predicted_loss", "disk_bytes"} <= told
    assert any(name.startswith("seconds/") for name in told)
    memory.told.clear()
    asked = ("finetune", "smaller", "-o", "tuned", *small, "--batch-size", 4, "--steps", 3)
    done = cli(*asked, "--track", "memory", "--json")
    assert done.code == 0, done.err
    losses = [(step, f["loss/next token"]) for f, step in memory.told if "loss/next token" in f]
    assert [step for step, _ in losses] == [1, 2, 3]
    [(first, last)] = json.loads(done.out)["losses"].values()
    assert [first, last] == [losses[0][1], losses[-1][1]]
    asked = ("bench", shelf / "model", "--methods", "svd/uniform/lowrank", "--budgets", "0.8")
    done = cli(*asked, *small, "--eval", shelf / "text.txt", "-o", "table", "--track", "memory")
    assert done.code == 0, done.err
    told = {name for figures, _ in memory.told for name in figures}
    assert f"svd/uniform/lowrank at 0.8/perplexity/{shelf / 'text.txt'}" in told
    assert memory.ends == 3
    assert cli("finetune", "nowhere", "-o", "x", *small, "--track", "memory").code == 2
    assert memory.told[-1] == ({"failed": 1.0}, None)
