"""An output directory appears whole or not at all, and has one writer."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys

import pytest
import torch

from spectrim.checkpoint import SaveOptions, add_text_file, load, save_compressed
from spectrim.errors import InputError
from spectrim.runtime.output_dir import output_directory
from tests.checkpoint.compressing import compress, logits
from tests.tiny_models import tiny_llama, tiny_tokenizer


@pytest.fixture(scope="module")
def small():
    model = tiny_llama()
    return model, compress(model, "lowrank")


def names(directory) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_card_and_extras_are_written_along(small, tmp_path):
    options = SaveOptions(card="# Card", extras={"recipe.yaml": "a: 1\n", "plan.json": "{}"})
    out = save_compressed(*small[:1], tiny_tokenizer(), tmp_path / "x" / "a", small[1], options)
    assert (out / "README.md").read_text() == "# Card"
    assert (out / "recipe.yaml").read_text() == "a: 1\n"
    assert names(out.parent) == ["a"]
    assert add_text_file(out, "plan.json", "[1]").read_text() == "[1]"
    assert not any(name.startswith(".") for name in names(out))


@pytest.mark.parametrize(
    "name", ["../a.json", "/a.json", "config.json", "a.py", ".a.md", "a", "tokenizer.json", ""]
)
def test_names_an_extra_cannot_have(small, tmp_path, name):
    with pytest.raises(InputError, match="extra"):
        save_compressed(
            small[0], None, tmp_path / "a", small[1], SaveOptions(extras={name: "x"})
        )
    assert names(tmp_path) == []


def test_extras_only_go_to_outputs(tmp_path):
    with pytest.raises(InputError, match="not an output"):
        add_text_file(tmp_path, "a.md", "x")


FAILURES = {
    "interrupt": (KeyboardInterrupt(), KeyboardInterrupt),
    "full": (OSError(errno.ENOSPC, "No space left on device"), InputError),
    "full, in rust": (RuntimeError("I/O error: No space left (os error 28)"), InputError),
    "bug": (ZeroDivisionError(), ZeroDivisionError),
}


@pytest.mark.parametrize(("raised", "seen"), FAILURES.values(), ids=FAILURES.keys())
@pytest.mark.parametrize("existing", [False, True])
def test_a_failed_save_leaves_nothing(small, tmp_path, monkeypatch, raised, seen, existing):
    model, config = small
    if existing:
        save_compressed(model, None, tmp_path / "a", config)
    before = names(tmp_path)

    def fail(directory, **kwargs):
        (directory / "half").write_text("written")
        raise raised

    monkeypatch.setattr(model, "save_pretrained", fail)
    with pytest.raises(seen):
        save_compressed(model, None, tmp_path / "a", config, SaveOptions(overwrite=True))
    assert names(tmp_path) == before
    if existing:
        assert torch.equal(logits(load(tmp_path / "a")[0]), logits(model))


def test_what_may_be_overwritten(small, tmp_path):
    model, config = small
    target = tmp_path / "a"
    target.mkdir()
    save_compressed(model, None, target, config, SaveOptions(card="one"))
    with pytest.raises(InputError, match="overwrite"):
        save_compressed(model, None, target, config)
    save_compressed(model, None, target, config, SaveOptions(overwrite=True))
    assert "README.md" not in names(target)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(InputError, match="did not write"):
        save_compressed(model, None, tmp_path / "thesis", config, SaveOptions(overwrite=True))
    with pytest.raises(InputError, match="file"):
        save_compressed(model, None, tmp_path / "thesis" / "chapter.txt", config)
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"
    assert names(tmp_path) == ["a", "thesis"]


def test_a_second_writer_is_refused(small, tmp_path):
    with output_directory(tmp_path / "a", False) as partial:
        (partial / "x").touch()
        with pytest.raises(InputError, match="another run"):
            save_compressed(small[0], None, tmp_path / "a", small[1])
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == ["x"]


def test_a_dead_writer_is_succeeded(small, tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    lock = tmp_path / ".a.spectrim-lock"
    lock.write_text(f"{dead.pid} {socket.gethostname()}")
    (tmp_path / ".a.spectrim-partial").mkdir()
    (tmp_path / ".a.spectrim-partial" / "half").touch()
    save_compressed(small[0], None, tmp_path / "a", small[1])
    assert names(tmp_path) == ["a"]
    assert "half" not in names(tmp_path / "a")


@pytest.mark.parametrize("text", ["", "text", f"{os.getpid()}"])
def test_a_lock_file_that_nobody_holds_is_no_obstacle(tmp_path, text):
    """A full disk leaves an empty one."""
    (tmp_path / ".a.spectrim-lock").write_text(text)
    with output_directory(tmp_path / "a", False) as partial:
        (partial / "x").touch()
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_modes_follow_the_umask(small, tmp_path, mask):
    before = os.umask(mask)
    try:
        save_compressed(small[0], None, tmp_path / "a", small[1])
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "a").iterdir()}
    assert modes == {0o666 & ~mask}
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o777 & ~mask


def test_an_unfinished_exchange_is_undone(tmp_path):
    """Killed between moving the earlier output aside and putting the new one there."""
    old = tmp_path / ".a.spectrim-old"
    old.mkdir()
    (old / "kept").touch()
    with pytest.raises(InputError), output_directory(tmp_path / "a", False):
        pass
    assert names(tmp_path / "a") == ["kept"]
