"""Snapshots beside a cache entry: stored now and then, read back, shared and removed."""

from __future__ import annotations

import threading

import pytest

from spectrim.errors import CheckpointError, InputError
from spectrim.planning.probe import Probe
from spectrim.planning.snapshots import LayerSnapshots, ResumableProbe
from spectrim.runtime import snapshots as module
from spectrim.runtime.files import lock_file, write_text
from spectrim.runtime.snapshots import Snapshots


def read(path):
    text = path.read_text()
    if text == "bad":
        raise CheckpointError(f"{path} is bad")
    return text


def test_saved_read_and_removed(tmp_path):
    snapshots = Snapshots(tmp_path / "deep" / "entry.safetensors", every=0)
    assert snapshots.names() == []
    assert snapshots.load("b", read) is None
    for name in ("b", "a.txt"):
        snapshots.save(name, lambda path: write_text(path, "text"))
    again = Snapshots(tmp_path / "deep" / "entry.safetensors")
    assert again.names() == ["a.txt", "b"]
    assert again.names("*.txt") == ["a.txt"]
    assert again.load("b", read) == "text"
    again.finish()
    again.finish()
    assert list((tmp_path / "deep").iterdir()) == []


def test_snapshots_of_a_directory_are_kept(tmp_path):
    snapshots = Snapshots.inside(tmp_path / "rows")
    snapshots.save("a", lambda path: write_text(path, "text"))
    assert (tmp_path / "rows" / "a").read_text() == "text"
    assert Snapshots.inside(tmp_path / "rows").load("a", read) == "text"
    assert Snapshots.inside(None).load("a", read) is None


def test_due_after_some_time(tmp_path):
    assert Snapshots(tmp_path / "entry", every=0).due()
    assert not Snapshots(tmp_path / "entry").due()
    assert not Snapshots(None, every=0).due(), "nothing can be stored"


def test_without_an_entry_nothing_is_stored():
    snapshots = Snapshots(None)
    snapshots.save("a", lambda path: pytest.fail("written"))
    assert snapshots.load("a", read) is None
    assert snapshots.names() == []
    snapshots.finish()


def test_a_damaged_snapshot_is_absent_with_a_warning(tmp_path):
    snapshots = Snapshots(tmp_path / "entry", every=0)
    snapshots.save("a", lambda path: write_text(path, "bad"))
    with pytest.warns(UserWarning, match="damaged"):
        assert snapshots.load("a", read) is None


def test_a_run_that_ends_does_not_break_another_that_saves(tmp_path):
    """One waits for the other, whichever is first, and both go on."""
    first, second = (Snapshots(tmp_path / "entry", every=0) for _ in range(2))
    writing, ended = threading.Event(), threading.Event()

    def write(path):
        path.parent.mkdir(exist_ok=True)
        writing.set()
        assert not ended.wait(0.2), "removed while it was written to"
        path.write_text("text")

    def end():
        writing.wait()
        second.finish()
        ended.set()

    thread = threading.Thread(target=end)
    thread.start()
    first.save("a", write)
    thread.join()
    assert ended.is_set()
    first.save("b", lambda path: write_text(path, "text"))
    assert first.names() == ["b"]
    first.finish()
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    snapshots = Snapshots(tmp_path / "file" / "entry", every=0)
    with pytest.raises(InputError, match="cannot write"):
        snapshots.save("a", lambda path: path.write_text(""))


def test_locks_of_one_path_exclude_each_other_and_leave_nothing(tmp_path):
    path = tmp_path / "lock"
    path.write_text("left behind, and nobody's")
    with lock_file(path), pytest.raises(TimeoutError), lock_file(path, timeout=0):
        pass
    assert list(tmp_path.iterdir()) == []


class Measured(Probe):
    def __init__(self, values):
        self.values = iter(values)
        self.ids = ONE_ROW

    def divergence(self, factors, ranks, removed=()):
        return next(self.values)


class ONE_ROW:
    shape = (1, 2)


def test_figures_of_probes_are_computed_once(tmp_path):
    def probe(*values):
        return ResumableProbe(Measured(values), Snapshots(tmp_path / "entry", 0), "joint")

    first = probe(0.1 + 0.2, 7.0)
    assert first.divergence({}, {"a": 1}) == 0.1 + 0.2
    assert first.divergence({}, {"a": 2}) == 7.0
    assert probe().divergence({}, {"a": 1}) == 0.1 + 0.2
    (tmp_path / "entry.parts" / "joint.json").write_text("[3")
    with pytest.warns(UserWarning, match="again"):
        assert probe(5.0).divergence({}, {"a": 1}) == 5.0


def test_no_layers_are_stored_at_first(tmp_path):
    assert LayerSnapshots(Snapshots(tmp_path / "entry")).load() is None


def test_large_saves_are_rarer(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    kept = Snapshots(tmp_path / "entry.safetensors", every=20.0)

    def write(path):
        path.parent.mkdir(exist_ok=True)
        path.write_text("sums")
        clock[0] += 2.0  # seconds that a save takes

    clock[0] = 20.0
    assert kept.due()
    kept.save("sums", write)
    clock[0] += 59.0
    assert not kept.due()
    clock[0] += 1.0
    assert kept.due()
