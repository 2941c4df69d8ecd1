"""Read a recording: a WAV file or its bytes, or samples, as one channel of float32."""

from __future__ import annotations

import io
import os
import wave
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy

from spectrim.errors import InputError

Samples = numpy.ndarray[Any, numpy.dtype[numpy.float32]]


def read_audio(value: Any, places: Sequence[Path], rate: int) -> Samples:
    """Return the samples (n,) of a recording, the mean of its channels.

    Args:
        value: the name of a file, or a mapping with `path`, `bytes`, or `array` and
            `sampling_rate`, as data sets of audio have.
        places: directories that a name is relative to.
        rate: samples per second that the model reads.

    Raises:
        InputError: no such file, none that can be read, of another rate, or without samples.
    """
    content, name = value, "the recording"
    if isinstance(value, Mapping):
        content = next(
            (value[k] for k in ("array", "bytes", "path") if value.get(k) is not None), None
        )
        name = str(value.get("path") or name)
    if isinstance(content, str):
        name, content = content, _bytes_of(content, places)
    if isinstance(content, bytes):
        samples, found = _decoded(content, name)
    elif isinstance(content, list | numpy.ndarray):
        samples, found = numpy.asarray(content, numpy.float32), int(value["sampling_rate"])
    else:
        got = type(content).__name__
        raise InputError(f"{name} is {got}, expected the name of a WAV file or its bytes")
    if found != rate:
        raise InputError(
            f"{name} has {found} samples per second, the model reads {rate}; convert it: "
            f"ffmpeg -i OLD -ar {rate} -ac 1 NEW.wav"
        )
    if not samples.size or not numpy.isfinite(samples).all():
        raise InputError(f"{name} has no samples, or some that are not finite")
    return samples if samples.ndim == 1 else samples.mean(-1)


def _bytes_of(name: str, places: Sequence[Path]) -> bytes:
    tried = [place / os.path.expanduser(name) for place in places]
    path = next((path for path in tried if path.is_file()), None)
    if path is None:
        raise InputError(f"no such file: '{name}', from {' or '.join(map(str, places))}")
    return path.read_bytes()


def _decoded(content: bytes, name: str) -> tuple[Samples, int]:
    """Return samples (n, channels) in [-1, 1), and their rate; of WAV without any package."""
    try:
        with wave.open(io.BytesIO(content)) as file:
            width, channels = file.getsampwidth(), file.getnchannels()
            raw, rate = file.readframes(file.getnframes()), file.getframerate()
    except (wave.Error, EOFError):
        return _by_soundfile(content, name)
    frame = width * channels
    whole = numpy.frombuffer(raw, numpy.uint8)[: len(raw) // frame * frame]
    numbers = numpy.zeros((len(whole) // width, 4), numpy.uint8)
    numbers[:, 4 - width :] = whole.reshape(-1, width) ^ (128 if width == 1 else 0)
    samples: Samples = (numbers.view("<i4")[:, 0] / 2**31).astype(numpy.float32)
    return samples.reshape(-1, channels), rate


def _by_soundfile(content: bytes, name: str) -> tuple[Samples, int]:
    try:
        import soundfile
    except ImportError as error:
        raise InputError(
            f"{name} is no WAV file of whole numbers; convert it (ffmpeg -i OLD -ar 16000 "
            "NEW.wav), or `pip install soundfile`, which reads FLAC, OGG and others"
        ) from error
    try:
        samples, rate = soundfile.read(io.BytesIO(content), dtype="float32")
    except RuntimeError as error:
        raise InputError(f"{name} cannot be read as sound: {error}") from error
    return samples, int(rate)
