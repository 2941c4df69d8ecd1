"""The plug-in in vLLM itself: greedy tokens are those of transformers.

Runs where SPECTRIM_VLLM_PYTHON names an interpreter with vLLM on a CPU; see
scripts/vllm_environment.sh. All models of one test share a process, whose start takes longest.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from spectrim.adapters import save_lora, to_lora
from spectrim.checkpoint import SpectrimConfig, load
from tests.checkpoint.compressing import replace_by_svd
from tests.serving.compressing import (
    compress_mixed,
    compress_shared,
    greedy,
    save,
    small_gpt2,
    small_qwen2,
)
from tests.shared_assets import shared_model

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("vllm_greedy.py")
PROMPTS = [[1, 40, 47, 61], [1, 41, 30, 29, 100, 50, 60, 70, 80], [1, 99]]
COUNT = 24
ENGINE = {"dtype": "float32", "enforce_eager": True, "max_model_len": 128}
MIXED = ("pivoted", "dense", "lowrank")
KINDS = {
    "lowrank": ("lowrank",),
    "pivoted": ("pivoted",),
    "sparse": ("sparse_plus_lowrank",),
    "mixed": ("sparse_dictionary", *MIXED, "sparse_plus_lowrank"),
}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def vllm_python() -> str:
    python = os.environ.get("SPECTRIM_VLLM_PYTHON")
    if python is None:
        pytest.skip("SPECTRIM_VLLM_PYTHON names no interpreter with vLLM")
    return python


def served(runs: list[dict], directory: Path, **environment: str) -> list[list[list[int]]]:
    """Tokens by run and prompt, from a process that knows the plug-in by its entry point."""
    job = {"runs": runs, "prompts": PROMPTS, "count": COUNT, "out": str(directory / "out")}
    (directory / "job.json").write_text(json.dumps(job))
    inherited = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    inherited |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    done = subprocess.run(
        [vllm_python(), "-P", str(SCRIPT), str(directory / "job.json")],
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=1400,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return json.loads(Path(job["out"]).read_text())


def test_greedy_tokens_are_those_of_transformers(tmp_path):
    """A trained model with grouped queries, and one with biases, in each kind and mixed."""
    vllm_python()
    stories = shared_model("stories3M")
    runs, wanted = [], []
    for name, kinds in KINDS.items():
        for source in ("stories", "qwen2"):
            model, tokenizer = load(stories) if source == "stories" else (small_qwen2(), None)
            config = compress_mixed(model, kinds)
            directory = save(model, config, tmp_path / f"{source}-{name}", tokenizer)
            runs.append({"model": str(directory), "engine": ENGINE})
            wanted.append(greedy(model, PROMPTS, COUNT))
    for name, model, config in _others():
        runs.append({"model": str(save(model, config, tmp_path / name)), "engine": ENGINE})
        wanted.append(greedy(model, PROMPTS, COUNT))
    found = served(runs, tmp_path, VLLM_ENABLE_V1_MULTIPROCESSING="0")
    for run, got, want in zip(runs, found, wanted, strict=True):
        assert got == want, run["model"]


def _others():
    """A basis for layers of two blocks, in fused layers and others; layers stored turned."""
    model = small_qwen2()
    suffixes = ("q_proj", "v_proj", "down_proj")
    yield "shared", model, compress_shared(model, suffixes, 80)
    model = small_gpt2()
    yield "gpt2", model, compress_mixed(model, ("pivoted", "lowrank", "dense"))


def test_plain_loras_of_all_adapters(tmp_path):
    """Each export beside one base: the tokens are those of the adapter itself."""
    vllm_python()
    from tests.adapters.building import NAMES, adapted, moved

    base = small_qwen2()
    base.save_pretrained(tmp_path / "base")
    untouched, wanted, places = greedy(base, PROMPTS, COUNT), {}, []
    for name in NAMES:
        model = moved(adapted(name, small_qwen2()), 0.03)
        wanted[name] = greedy(model, PROMPTS, COUNT)
        places.append(str(save_lora(to_lora(model), tmp_path / name)))
    engine = ENGINE | {"enable_lora": True, "max_lora_rank": 128, "max_loras": 1}
    runs = [{"model": str(tmp_path / "base"), "engine": engine, "loras": places}]
    [found] = served(runs, tmp_path, VLLM_ENABLE_V1_MULTIPROCESSING="0")
    assert dict(zip(NAMES, found, strict=True)) == wanted
    assert untouched not in wanted.values()


def test_a_factored_head_is_refused(tmp_path):
    vllm_python()
    model = small_qwen2()
    replace_by_svd(model, "lm_head", "lowrank", 60)
    config = SpectrimConfig({"lm_head": {"kind": "lowrank", "rank": 60}})
    runs = [{"model": str(save(model, config, tmp_path / "model")), "engine": ENGINE}]
    [found] = served(runs, tmp_path, VLLM_ENABLE_V1_MULTIPROCESSING="0")
    assert "lm_head is factored, and vLLM cannot hold a factored output head" in found


def test_two_processes_that_share_each_layer(tmp_path):
    """Tensor parallelism: outputs cut in q, k, v, gate and up, inputs in o and down."""
    vllm_python()
    model = small_qwen2()
    directory = save(model, compress_mixed(model, MIXED), tmp_path / "model")
    engine = ENGINE | {"tensor_parallel_size": 2}
    runs = [{"model": str(directory), "engine": engine}]
    [found] = served(runs, tmp_path, VLLM_CPU_OMP_THREADS_BIND="0|1")
    assert found == greedy(model, PROMPTS, COUNT)


def test_compiled(tmp_path):
    vllm_python()
    model = small_qwen2()
    directory = save(model, compress_mixed(model, MIXED), tmp_path / "model")
    runs = [{"model": str(directory), "engine": ENGINE | {"enforce_eager": False}}]
    [found] = served(runs, tmp_path, VLLM_ENABLE_V1_MULTIPROCESSING="0")
    assert found == greedy(model, PROMPTS, COUNT)
