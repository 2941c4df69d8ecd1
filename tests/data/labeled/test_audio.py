"""Recordings: WAV of all widths, mappings of data sets, and what is refused."""

from __future__ import annotations

import numpy
import pytest

from spectrim.data.labeled.audio import read_audio
from spectrim.errors import InputError
from tests.speech import RATE, write_wav

SAMPLES = numpy.linspace(-0.75, 0.75, 64)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_wav_of_whole_numbers(tmp_path, width):
    both = numpy.stack([SAMPLES, SAMPLES + 0.1], 1)
    write_wav(tmp_path / "a.wav", both, width)
    found = read_audio("a.wav", (tmp_path / "no", tmp_path), RATE)
    assert found.dtype == numpy.float32
    assert numpy.abs(found - both.mean(1)).max() <= 2.0 ** (2 - 8 * width) + 1e-6


def test_mappings_of_data_sets(tmp_path):
    content = write_wav(tmp_path / "a.wav", SAMPLES).read_bytes()
    given = (
        {"path": "elsewhere.wav", "bytes": content},
        {"path": str(tmp_path / "a.wav"), "bytes": None},
        {"array": SAMPLES.tolist(), "sampling_rate": RATE},
    )
    for value in given:
        assert numpy.abs(read_audio(value, (tmp_path,), RATE) - SAMPLES).max() < 1e-4


def test_what_is_refused(tmp_path):
    write_wav(tmp_path / "fast.wav", SAMPLES, rate=44_100)
    write_wav(tmp_path / "none.wav", SAMPLES[:0])
    (tmp_path / "a.flac").write_bytes(b"fLaC")
    cases = {
        "no.wav": "no such file: 'no.wav'",
        "fast.wav": "44100 samples per second, the model reads 16000; convert it: ffmpeg",
        "none.wav": "has no samples",
        "a.flac": "a.flac (is no WAV file|cannot be read)",
        3: "is int, expected the name of a WAV file",
    }
    for value, message in cases.items():
        with pytest.raises(InputError, match=message):
            read_audio(value, (tmp_path,), RATE)
