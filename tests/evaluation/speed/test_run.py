"""A race: what is counted, what is compared, and that memory is what it must be."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from spectrim.errors import InputError, UnknownNameError
from spectrim.evaluation.size import stored_bytes
from spectrim.evaluation.speed import (
    SpeedSettings,
    bench_speed,
    factorize_randomly,
    make_variants,
    random_model,
)
from spectrim.evaluation.speed.memory import peak_activation_bytes
from spectrim.evaluation.speed.roofline import measure_limits
from spectrim.evaluation.speed.timing import Times, time_interleaved
from spectrim.evaluation.speed.variants import cache_bytes, operations, read_bytes
from spectrim.evaluation.speed.workloads import Decode, Prefill
from spectrim.inference import fuse
from spectrim.models.replace import factored_layers
from spectrim.report import speed_table
from tests.tiny_models import tiny_gqa, tiny_llama, tiny_tied, tiny_tokens

CPU = torch.device("cpu")
SMALL = SpeedSettings(batches=(1, 2), lengths=(8,), rounds=3, steps=2)


@pytest.fixture(scope="module")
def shape(tmp_path_factory):
    place = tmp_path_factory.mktemp("shape") / "config.json"
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    place.write_text(json.dumps({"model_type": "llama", "vocab_size": 64} | sizes | heads))
    return str(place)


@pytest.mark.parametrize("kind", ["lowrank", "pivoted"])
def test_random_layers_keep_what_is_asked_and_fuse(shape, kind):
    dense = random_model(shape, torch.float32, CPU)
    smaller = factorize_randomly(copy.deepcopy(dense), 0.5, kind, multiple=2)
    layers = dict(factored_layers(smaller))
    kept = sum(type(m).cost(m.out_features, m.in_features, m.rank) for m in layers.values())
    weights = sum(m.out_features * m.in_features for m in layers.values())
    assert 0.4 < kept / weights <= 0.5
    assert all(m.rank % 2 == 0 and m.validate() is None for m in layers.values())
    before = smaller(tiny_tokens() % 64).logits
    fuse(smaller)
    assert torch.allclose(smaller(tiny_tokens() % 64).logits, before, atol=1e-5)


def test_an_encoder_is_timed_without_decoding(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    place = tmp_path / "config.json"
    more = {"model_type": "bert", "vocab_size": 64, "num_attention_heads": 2}
    place.write_text(json.dumps(more | sizes))
    dense = random_model(str(place), torch.float32, CPU)
    smaller = factorize_randomly(copy.deepcopy(dense), 0.5, "lowrank")
    result = bench_speed(make_variants(dense, smaller), SMALL)
    assert {row.case.phase for row in result.rows} == {"prefill"}


@pytest.mark.slow
def test_a_race_has_a_row_for_each_model_in_each_case(shape):
    dense = random_model(shape, torch.float32, CPU)
    smaller = factorize_randomly(copy.deepcopy(dense), 0.5, "lowrank")
    result = bench_speed(make_variants(dense, smaller), SMALL)
    assert [row.model for row in result.rows] == ["dense", "compressed", "fused"] * 4
    assert all(row.speedup == 1 for row in result.rows if row.model == "dense")
    assert all(row.seconds > 0 and row.peak_activation_bytes > 0 for row in result.rows)
    assert all(0 < row.of_limit < 1 for row in result.rows)
    sizes = {row.model: row.weight_bytes for row in result.rows}
    assert sizes["fused"] == sizes["compressed"] == stored_bytes(smaller) < sizes["dense"]
    text = speed_table.markdown(result, "tiny")
    assert text.count("| decode |") == text.count("| prefill |") == 6
    assert json.dumps(speed_table.values(result, "tiny"))


def test_speedup_is_the_median_of_ratios_within_rounds():
    times = Times({"slow": (2.0, 30.0, 4.0), "fast": (1.0, 10.0, 4.0)})
    assert times.speedup("fast", "slow") == 2.0
    assert times.median("slow") == 4.0


def test_runs_take_turns():
    seen = []
    runs = {name: (lambda name=name: seen.append(name)) for name in "ab"}
    times = time_interleaved(runs, 2, CPU)
    assert "".join(seen) == "ab" + "abba"
    assert all(len(seconds) == 2 for seconds in times.seconds.values())


def test_peak_memory_is_the_live_bytes_at_their_highest():
    def run():
        a = torch.zeros(1000)
        b = a + 1
        del a
        return b * b

    scalars = 64
    assert 8000 <= peak_activation_bytes(run, CPU) <= 8000 + scalars


def test_decode_leaves_its_cache_as_it_was():
    model = tiny_gqa().eval()
    run = Decode(model, 2, 6, 3)
    run()
    run()
    assert run.cache.get_seq_length() == 6


def test_prefill_asks_for_one_position():
    assert Prefill(tiny_llama(), 3, 5)().logits.shape[:2] == (3, 1)


def test_what_a_token_reads_and_what_a_prompt_costs():
    untied, tied = tiny_llama(), tiny_tied()
    table = 128 * 32 * 4
    assert read_bytes(untied) == stored_bytes(untied) - table
    assert read_bytes(tied) == stored_bytes(tied)
    blocks = 2 * (4 * 32 * 32 + 3 * 32 * 64)
    attention = 2 * 4 * 32 * 10 * 10 // 2
    assert operations(untied, 1, 10) == 2 * blocks * 10 + 2 * 128 * 32 + attention
    gqa = tiny_gqa()
    assert cache_bytes(gqa, 3, 5, 4) == 2 * 2 * 2 * 12 * 3 * 5 * 4


def test_limits_are_those_of_a_computer():
    limits = measure_limits(CPU, torch.float32)
    assert limits.bytes_per_second > 1e8
    assert limits.operations_per_second > limits.bytes_per_second / 4


def test_what_cannot_be_timed_says_so(shape):
    with pytest.raises(UnknownNameError, match="llama-7b"):
        random_model("lama-7b", torch.float32, CPU)
    dense = random_model(shape, torch.float32, CPU)
    with pytest.raises(InputError, match="lowrank or pivoted"):
        factorize_randomly(dense, 0.5, "shared_basis")
    with pytest.raises(InputError, match="rounds 0"):
        SpeedSettings(rounds=0)
    with pytest.raises(InputError, match="context of 128"):
        bench_speed(make_variants(tiny_llama(), None), SpeedSettings(lengths=(4096,)))
