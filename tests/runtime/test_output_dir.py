"""Where an output goes is tried before the work; no place and no neighbor's file is lost."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from spectrim.errors import InputError
from spectrim.runtime import exchange as exchange_module
from spectrim.runtime import output_dir
from spectrim.runtime.exchange import MARKER
from spectrim.runtime.output_dir import check_output, output_directory


def write(directory: Path | str, overwrite: bool = False, **files: str) -> None:
    with output_directory(directory, overwrite) as partial:
        for name, text in {MARKER: "{}", "model.safetensors": "weights", **files}.items():
            (partial / name).write_text(text)


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


@pytest.fixture
def mounted(tmp_path, monkeypatch) -> Path:
    """A directory that cannot be renamed."""
    target = tmp_path / "mounted"
    target.mkdir()
    monkeypatch.setattr(output_dir.os.path, "ismount", lambda path: Path(path) == target)
    return target


def test_a_check_leaves_nothing_behind(tmp_path):
    check_output(tmp_path / "new" / "deep" / "out", False)
    assert names(tmp_path) == []
    write(tmp_path / "out")
    check_output(tmp_path / "out", True)
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["model.safetensors", MARKER]


def test_a_check_finds_another_writer(tmp_path):
    with output_directory(tmp_path / "out", False), pytest.raises(InputError, match="another"):
        check_output(tmp_path / "out", False)


@pytest.mark.parametrize("check", [True, False])
def test_places_that_cannot_be(tmp_path, monkeypatch, check):
    def attempt(place: Path | str) -> str:
        with pytest.raises(InputError) as caught:
            check_output(place, False) if check else write(place)
        return str(caught.value)

    (tmp_path / "file").touch()
    assert "is a file" in attempt(tmp_path / "file")
    attempt(tmp_path / "file" / "below")
    assert "has 300 bytes" in attempt(tmp_path / ("n" * 300))
    attempt("~nobody_of_that_name/x")
    attempt("a\0b")
    monkeypatch.setattr(output_dir.os, "access", lambda path, mode: Path(path) != tmp_path)
    assert "cannot be written" in attempt(tmp_path / "out")
    assert names(tmp_path) == ["file"]


def test_a_name_that_leaves_no_room_for_a_suffix(tmp_path):
    write(tmp_path / ("n" * 250))
    assert names(tmp_path) == ["n" * 250]


def test_a_mount_point_is_filled_in_place(mounted):
    (mounted / "lost+found").mkdir()
    (mounted / ".gitkeep").touch()
    before = mounted.stat().st_ino
    check_output(mounted, False)
    write(mounted)
    assert mounted.stat().st_ino == before
    everything = [".gitkeep", "lost+found", "model.safetensors", MARKER]
    assert names(mounted) == everything
    assert names(mounted.parent) == ["mounted"]
    with pytest.raises(InputError, match="already holds a result"):
        check_output(mounted, False)
    (mounted / "spectrim_plan.yaml").touch()
    write(mounted, overwrite=True)
    assert names(mounted) == everything


def test_the_index_is_last_and_a_half_filled_place_is_no_result(mounted, monkeypatch):
    moved: list[str] = []
    original = exchange_module.shutil.move

    def move(source, target):
        moved.append(Path(source).name)
        if len(moved) == 3:
            raise KeyboardInterrupt
        return original(source, target)

    files = {"config.json": "{}", "tokenizer.json": "{}"}
    with monkeypatch.context() as patch:
        patch.setattr(exchange_module.shutil, "move", move)
        with pytest.raises(KeyboardInterrupt):
            write(mounted, **files)
    assert not {"config.json", MARKER} & set(names(mounted))
    moved.clear()
    write(mounted, **files)  # the next run clears what the journal names
    assert names(mounted) == ["config.json", "model.safetensors", MARKER, "tokenizer.json"]


def test_a_rename_that_is_refused_is_filled_in_place(tmp_path, monkeypatch):
    """A bind mount looks like a directory until it is renamed."""
    target = tmp_path / "bound"
    target.mkdir()
    original = os.rename

    def rename(source, destination):
        if Path(source) == target:
            raise OSError(errno.EBUSY, "Device or resource busy")
        original(source, destination)

    monkeypatch.setattr(exchange_module.os, "rename", rename)
    write(target)
    assert names(target) == ["model.safetensors", MARKER]
    assert names(tmp_path) == ["bound"]


def test_the_working_directory_is_a_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_output(".", False)
    write(".")
    assert names(Path()) == ["model.safetensors", MARKER]
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    write("..", overwrite=True)
    assert Path.cwd() == tmp_path / "inner"


def test_a_link_leads_to_its_place(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write(tmp_path / "link")
    assert names(tmp_path / "real") == ["model.safetensors", MARKER]
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("in_place", [False, True])
def test_files_put_beside_a_result_are_carried_over(tmp_path, monkeypatch, in_place):
    target = tmp_path / "out"
    write(target, **{"spectrim_plan.yaml": "old"})
    (target / "notes.md").write_text("mine")
    (target / "eval").mkdir()
    (target / "eval" / "a.json").write_text("1")
    (target / ".git").mkdir()
    if in_place:
        monkeypatch.chdir(target)
    write(target, overwrite=True, **{"config.json": "{}"})
    mine = [".git", "eval", "notes.md"]
    assert names(target) == sorted(["config.json", "model.safetensors", MARKER, *mine])
    assert (target / "notes.md").read_text() == "mine"
    assert (target / "eval" / "a.json").read_text() == "1"


def test_foreign_files_are_named(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"\(thesis\.tex\)"):
        check_output(tmp_path, True)


def test_a_file_system_without_permissions_or_sync(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(output_dir.Path, "chmod", refuse)
    write(tmp_path / "out")
    assert names(tmp_path / "out") == ["model.safetensors", MARKER]
