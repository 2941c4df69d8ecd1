"""A tiny Whisper on recordings: compressed, evaluated, loaded by transformers."""

from __future__ import annotations

import json
import warnings

import numpy
import pytest
import torch
from transformers import AutoModelForSpeechSeq2Seq

from spectrim.calibration.labeled import whole_batch
from spectrim.data.labeled.rows import IGNORED
from spectrim.layers import CompactLinear
from spectrim.pipeline.labeled import ExampleSettings, labeled_rows
from tests.speech import END, RATE, recordings_file, tiny_processor, tiny_whisper, write_wav


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("speech")
    tiny_whisper().save_pretrained(root / "model")
    tiny_processor().save_pretrained(root / "model")
    recordings_file(root)
    return root


@torch.no_grad()
def test_a_speech_model_is_compressed_and_evaluated(cli, place, tmp_path):
    data = ("--data", place / "rows.jsonl")
    done = cli("compress", place / "model", "-o", "out", "--budget", 0.7, *data)
    assert done.code == 0, done.err
    assert "speech recognizer: its own loss, nats per target token" in done.err
    assert "fields audio, text" in done.err
    loaded, info = AutoModelForSpeechSeq2Seq.from_pretrained("out", output_loading_info=True)
    assert not info["missing_keys"]
    compressed = [n for n, m in loaded.named_modules() if isinstance(m, CompactLinear)]
    assert any("encoder" in name for name in compressed)
    assert any("encoder_attn" in name for name in compressed)
    assert (tmp_path / "out/preprocessor_config.json").exists() or (
        tmp_path / "out/processor_config.json"
    ).exists()
    told = cli("evaluate", "out", "--original", place / "model", *data, "--json")
    assert told.code == 0, told.err
    figures = json.loads(told.out)["out"]
    rows = labeled_rows(loaded, tiny_processor(), ExampleSettings(str(place / "rows.jsonl")))
    batch = whole_batch(rows, torch.device("cpu"))
    assert figures["loss"] == pytest.approx(float(batch.run(loaded).loss), rel=1e-4)
    assert figures["kl_divergence"] > 0
    assert figures["target_tokens"] == int((rows.labels != IGNORED).sum())


def test_rows_are_features_and_targets(place):
    model, processor = tiny_whisper(), tiny_processor()
    rows = labeled_rows(model, processor, ExampleSettings(str(place / "rows.jsonl")))
    assert rows.inputs["input_features"].shape == (12, 8, 100)
    assert rows.inputs["attention_mask"].shape == (12, 50)
    first = processor.tokenizer.decode(
        [token for token in rows.labels[0].tolist() if token != IGNORED]
    )
    assert first.startswith("<|notimestamps|>x"), "what the decoder begins with is left out"
    assert rows.labels[0].tolist()[rows.sizes[0] - 51] == END
    inputs, labels = rows.cut(slice(0, 2))
    assert inputs["input_features"].shape == (2, 8, 100)
    assert labels.shape[1] == int((rows.labels[:2] != IGNORED).sum(1).max())


def test_longer_recordings_are_cut_and_told(place, tmp_path):
    write_wav(tmp_path / "long.wav", numpy.zeros(2 * RATE) + 0.1)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"audio": "long.wav", "text": "hm"}))
    with pytest.warns(UserWarning, match="1 of 1 recordings are longer .* cut to 1 s"):
        labeled_rows(tiny_whisper(), tiny_processor(), ExampleSettings(str(rows)))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"audio": "none.wav", "text": "hm"}, "no such file: 'none.wav'"),
        ({"audio": "0.wav"}, "cannot tell text and label by the fields' names"),
        ({"audio": 3, "text": "hm"}, "expected the name of a WAV file"),
    ],
)
def test_wrong_rows_are_told_before_the_model_is_read(cli, place, monkeypatch, row, message):
    monkeypatch.setattr("spectrim.pipeline.loaded_model.load", None)
    (place / "wrong.jsonl").write_text(json.dumps(row))
    done = cli("compress", place / "model", "-o", "out", "--data", place / "wrong.jsonl")
    assert message in done.failed_with_one_line()


def test_a_model_without_its_processor(cli, place, tmp_path):
    tiny_whisper().save_pretrained(tmp_path / "bare")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tiny_processor().tokenizer.save_pretrained(tmp_path / "bare")
    done = cli("compress", "./bare", "-o", "out", "--data", place / "rows.jsonl")
    assert "needs its processor" in done.failed_with_one_line()
