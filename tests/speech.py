"""A tiny Whisper with its processor, and made-up recordings."""

from __future__ import annotations

import json
import random
import wave
from pathlib import Path

import numpy
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AutoModelForSpeechSeq2Seq,
    PreTrainedModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperProcessor,
    WhisperTokenizer,
)

from tests.tiny_models import randomize_biases

RATE = 16_000
_SPECIAL = ("<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>", "<|transcribe|>")
END, START = 0, 1


def tiny_whisper(seed: int = 0) -> PreTrainedModel:
    """Whisper that hears one second."""
    config = WhisperConfig(
        vocab_size=len(_SPECIAL) + 256,
        num_mel_bins=8,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        init_std=0.2,
        max_source_positions=50,
        max_target_positions=64,
        pad_token_id=END,
        bos_token_id=END,
        eos_token_id=END,
        decoder_start_token_id=START,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForSpeechSeq2Seq.from_config(config, dtype=torch.float32).eval()
    randomize_biases(model, seed)
    return model


def tiny_processor() -> WhisperProcessor:
    """Features of one second, and one token per byte."""
    words = [*_SPECIAL, *sorted(ByteLevel.alphabet())]
    tokenizer = WhisperTokenizer(
        vocab={word: number for number, word in enumerate(words)}, merges=[]
    )
    return WhisperProcessor(WhisperFeatureExtractor(8, chunk_length=1), tokenizer)


def write_wav(path: Path, samples: numpy.ndarray, width: int = 2, rate: int = RATE) -> Path:
    """Write samples (n,) or (n, channels) in [-1, 1) as whole numbers of `width` bytes."""
    shaped = samples if samples.ndim > 1 else samples[:, None]
    numbers = (shaped * 2.0 ** (8 * width - 1)).round().astype("<i8")
    raw = (numbers + (128 if width == 1 else 0)).astype("<i8").view(numpy.uint8)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(shaped.shape[1])
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(raw.reshape(-1, 8)[:, :width].tobytes())
    return path


def recordings_file(directory: Path, count: int = 12, seed: int = 0) -> Path:
    """Write `rows.jsonl` with sounds of one second at most, and what is said in them."""
    source, noise = random.Random(seed), numpy.random.default_rng(seed)
    rows = []
    for number in range(count):
        samples = 0.1 * noise.standard_normal(source.randint(RATE // 4, RATE))
        write_wav(directory / f"{number}.wav", samples.clip(-0.9, 0.9))
        text = "".join(source.choices("abcdefgh ", k=source.randint(4, 20)))
        rows.append({"audio": f"{number}.wav", "text": f"x{text}x"})
    path = directory / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path
