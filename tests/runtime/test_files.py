"""Files are complete or absent, and what is altered in them is seen."""

from __future__ import annotations

import json
import os
import random
import stat
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from spectrim.errors import CheckpointError, DamagedFileError, InputError
from spectrim.runtime.cache import Cache, load_if_valid_locally, store
from spectrim.runtime.files import (
    lock_file,
    read_header,
    read_some,
    read_tensors,
    read_values,
    write_tensors,
    write_text,
    write_values,
)

TENSORS = {
    "matrix": torch.linspace(-1, 1, 12, dtype=torch.float64).view(3, 4),
    "half": torch.linspace(-1, 1, 5).to(torch.bfloat16),
    "number": torch.tensor(7),
    "empty": torch.empty(0, 3),
    "flags": torch.tensor([True, False]),
    "turned": torch.arange(6.0).view(2, 3).T,
}
METADATA = {"name": "a value", "numbers": [1, 2.5]}


@pytest.fixture
def path(tmp_path) -> Path:
    write_tensors(tmp_path / "entry.safetensors", TENSORS, METADATA)
    return tmp_path / "entry.safetensors"


def equal(one, other) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype
        for name in one
    )


def test_round_trip(path):
    tensors, metadata = read_tensors(path)
    assert equal(tensors, TENSORS)
    assert metadata == METADATA
    assert equal(read_some(path, ["half"]), {"half": TENSORS["half"]})
    names, metadata = read_header(path)
    assert sorted(names) == sorted(TENSORS)
    assert metadata == METADATA
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.slow
def test_every_flipped_bit_is_seen(path):
    """In the data, in names, shapes and metadata: the values are the same or not read."""
    whole, source = path.read_bytes(), random.Random(0)
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    places = [*range(8 * header, 8 * len(whole)), *source.sample(range(8 * header), 400)]
    for place in places:
        data = bytearray(whole)
        data[place // 8] ^= 1 << place % 8
        path.write_bytes(data)
        try:
            tensors, metadata = read_tensors(path)
        except CheckpointError:
            continue
        assert place < 8 * header, f"bit {place} of the data"
        assert equal(tensors, TENSORS)
        assert metadata == METADATA


def test_a_flipped_bit_of_one_tensor_leaves_the_others(path):
    data = bytearray(path.read_bytes())
    start = 8 + struct.unpack("<Q", data[:8])[0]
    entry = json.loads(data[8:start])["matrix"]["data_offsets"][0]
    data[start + entry] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedFileError, match="tensor 'matrix' does not match"):
        read_some(path, ["matrix"])
    assert equal(read_some(path, ["half"]), {"half": TENSORS["half"]})
    with pytest.warns(UserWarning, match="making the entry again"):
        assert load_if_valid_locally(path, read_tensors) is None


def test_files_without_checksums_are_read(tmp_path):
    """As early versions wrote them."""
    tensors = {name: tensor.contiguous() for name, tensor in TENSORS.items()}
    save_file(tensors, tmp_path / "old", {"spectrim": json.dumps(METADATA)})
    found, metadata = read_tensors(tmp_path / "old")
    assert equal(found, TENSORS)
    assert metadata == METADATA


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_modes_follow_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_tensors(tmp_path / "a", TENSORS, METADATA)
        write_text(tmp_path / "b", "text")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(each.stat().st_mode) for each in tmp_path.iterdir()}
    assert modes == {0o666 & ~mask}


CHILD = """
import sys, time
from pathlib import Path
from spectrim.runtime import files
path = Path(sys.argv[1])
def write(partial):
    partial.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
files._write(path, write)
"""


@pytest.fixture
def killed(tmp_path) -> Path:
    """A file whose writer was killed before it was renamed."""
    path = tmp_path / "entry.json"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, path], stdout=subprocess.PIPE, env=environment
    )
    assert child.stdout is not None
    child.stdout.readline()
    assert load_if_valid_locally(path, Path.read_text) is None
    assert len(list(tmp_path.iterdir())) == 2, "a live writer's files stay"
    child.kill()
    child.wait()
    child.stdout.close()
    return path


def test_a_killed_writers_files_go_with_the_next_write(killed):
    write_text(killed, "whole")
    assert [path.name for path in killed.parent.iterdir()] == [killed.name]


def test_a_killed_writers_files_go_with_the_next_look(killed):
    killed.write_text("whole")
    assert load_if_valid_locally(killed, Path.read_text) == "whole"
    assert [path.name for path in killed.parent.iterdir()] == [killed.name]


def test_a_look_where_nothing_is(tmp_path):
    assert load_if_valid_locally(tmp_path / "nowhere" / "entry.json", Path.read_text) is None


@pytest.mark.slow
def test_two_writers_of_one_file_take_turns(tmp_path):
    path = tmp_path / "entry.json"
    start = time.monotonic()
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD.replace("60", "1.5"), path],
        stdout=subprocess.PIPE,
        env=environment,
    )
    assert child.stdout is not None
    child.stdout.readline()
    write_text(path, "whole")
    assert child.wait() == 0
    child.stdout.close()
    assert time.monotonic() - start > 1.5
    assert path.read_text() == "whole"
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_store_writes_where_there_is_a_path(tmp_path):
    store(None, lambda path: pytest.fail("written"))
    path = Cache(tmp_path).path("kind", {"a": 1})
    store(path, lambda place: write_text(place, "text"))
    assert path is not None
    assert path.read_text() == "text"


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        write_text(tmp_path / "file" / "entry", "text")
    with pytest.raises(InputError, match="cannot write"), lock_file(tmp_path / "file" / "x"):
        pass


def test_values_are_what_was_written_or_damaged(tmp_path):
    """A flipped bit that leaves valid JSON is found as well."""
    path, values = tmp_path / "values.json", {"names": ["a", "b"], "figure": 0.125}
    write_values(path, values)
    assert read_values(path) == values
    whole = path.read_text()
    for changed in (whole.replace("0.125", "0.925"), whole[:-3], "[]", '{"values": "1"}', ""):
        path.write_text(changed)
        with pytest.raises(DamagedFileError, match=r"values\.json"):
            read_values(path)
