"""A stopped run is continued, and what is damaged or foreign in the cache is made again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from spectrim.calibration import in_memory


class Batches:
    """Counts the batches of a calibration, and interrupts it at one of them."""

    def __init__(self, monkeypatch, stop_at: int | None):
        self.count = 0
        original = in_memory.run_batch

        def run(*arguments):
            self.count += 1
            if self.count == stop_at:
                raise KeyboardInterrupt
            original(*arguments)

        monkeypatch.setattr(in_memory, "run_batch", run)
        monkeypatch.setattr("spectrim.cli.ahead.estimate_stages", lambda *given: [])


ONE_PASS = ("-o", "out", "--cache", "kept", "--set", "hessian_averaging.weight=0", "--no-probe")


def test_an_interrupted_calibration_is_continued(compress, tmp_path, monkeypatch):
    """Eight sequences of 24 tokens in batches of 48 tokens are four batches."""
    monkeypatch.setattr("spectrim.runtime.snapshots.SECONDS_BETWEEN_SAVES", 0)
    options = (*ONE_PASS, "--set", "calibration.tokens_per_batch=48")
    with monkeypatch.context() as patch:
        batches = Batches(patch, 3)
        assert "interrupted" in compress(*options).failed_with_one_line()
        assert batches.count == 3
    [partial] = (tmp_path / "kept").glob("*.parts")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept"]
    with monkeypatch.context() as patch:
        batches = Batches(patch, None)
        assert compress(*options).code == 0
        assert batches.count == 2
    assert not partial.exists()
    without = compress(*options[:1], "other", *options[4:], "--no-cache")
    assert without.code == 0
    assert same_files(tmp_path / "out", tmp_path / "other")


def same_files(one: Path, two: Path) -> bool:
    names = [path.name for path in one.iterdir()]
    return all((one / name).read_bytes() == (two / name).read_bytes() for name in names)


@pytest.mark.slow
def test_a_damaged_partial_result_is_started_again(compress, tmp_path, monkeypatch):
    monkeypatch.setattr("spectrim.runtime.snapshots.SECONDS_BETWEEN_SAVES", 0)
    with monkeypatch.context() as patch:
        Batches(patch, 2)
        compress(*ONE_PASS, "--set", "calibration.tokens_per_batch=48").failed_with_one_line()
    [sums] = (tmp_path / "kept").glob("*.parts/*")
    truncate(sums)
    done = compress(*ONE_PASS)
    assert done.code == 0, done.err
    assert "warning: making the calibration again" in done.err


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", ["calibration", "decomposition"])
def test_a_damaged_entry_of_the_cache_is_made_again(compress, tmp_path, kind):
    assert compress(*ONE_PASS).code == 0
    for path in (tmp_path / "kept").glob(f"{kind}*"):
        truncate(path)
    done = compress("-o", "second", *ONE_PASS[2:])
    assert done.code == 0, done.err
    assert f"warning: making the {kind} again" in done.err
    assert same_files(tmp_path / "out", tmp_path / "second")
    third = compress("-o", "third", *ONE_PASS[2:])
    assert (third.code, "again" in third.err) == (0, False)


@pytest.mark.slow
def test_a_foreign_entry_of_the_cache_is_made_again(compress, tmp_path):
    assert compress(*ONE_PASS).code == 0
    for path in (tmp_path / "kept").iterdir():
        save_file({"other": torch.zeros(2)}, path, {"spectrim": "{}"})
    done = compress("-o", "second", *ONE_PASS[2:])
    assert done.code == 0, done.err
    assert same_files(tmp_path / "out", tmp_path / "second")
