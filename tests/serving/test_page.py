"""The commands of docs/serving.md do what the page says of them."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest
from torch import nn
from transformers import AutoModelForCausalLM

from spectrim.checkpoint import is_active, load
from spectrim.models.replace import factored_layers
from tests.serving.compressing import greedy
from tests.serving.conftest import save_small
from tests.serving.page import PORT, ROLES, ROOT, Environment, blocks, section
from tests.serving.servers import free_port, running

pytestmark = pytest.mark.slow

PROMPT, COUNT = "Once upon a time", 20
SMALL_MACHINE = "--dtype float32 --max-model-len 128 --enforce-eager"
"""For a server on a CPU, which compiles nothing and rounds as transformers does."""


def test_each_block_says_whether_it_is_run():
    for block in blocks():
        role = block.role or ""
        assert role in ROLES or role.startswith("not run: "), block
        assert block.language in ("sh", "python"), block


def text_of(environment: Environment) -> str:
    """What the model answers: the tokens after the prompt."""
    model, tokenizer = load(environment.directory / "small")
    [tokens] = greedy(model, [tokenizer(PROMPT).input_ids], COUNT)
    return tokenizer.decode(tokens, skip_special_tokens=True)


def test_transformers_serve(environment, port):
    [activate, client] = section("transformers serve", "run")
    assert environment.run(client, port).removesuffix("\n") == text_of(environment)
    assert not is_active(), "activation reached the environment of the tests"
    assert "removed" in environment.output_of(f"{activate.text.strip()} --remove 2>&1")


def test_onnx_runtime(environment):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"needs {name}, of the extra 'onnx'")
    export, use = section("ONNX Runtime", "run")
    environment.run(export)
    assert text_of(environment) in environment.run(use)


def test_dense(environment):
    export, use = section("llama.cpp, CTranslate2 and everything else", "run")
    environment.run(export)
    environment.run(use)
    dense = AutoModelForCausalLM.from_pretrained(environment.directory / "dense")
    assert not list(factored_layers(dense))
    assert {m.weight.dtype for m in dense.modules() if isinstance(m, nn.Linear)} == {
        load(environment.directory / "small")[0].dtype
    }


def test_vllm(tmp_path):
    """The server, its client, and vLLM as a library, in an environment that has it."""
    python = os.environ.get("SPECTRIM_VLLM_PYTHON")
    if python is None:
        pytest.skip("SPECTRIM_VLLM_PYTHON names no interpreter with vLLM")
    environment = VllmEnvironment(Path(python).parent, tmp_path)
    save_small(tmp_path)
    [server] = section("vLLM", "server: vllm")
    port = free_port()
    command = f"{server.text.strip().replace(PORT, str(port))} {SMALL_MACHINE}"
    client, library = section("vLLM", "run: vllm")
    wanted = text_of(environment)
    with running(shlex.split(command), port, environment, 600):
        assert environment.run(client, port).removesuffix("\n") == wanted
    options = 'LLM("small", dtype="float32", max_model_len=128, enforce_eager=True)'
    changed = library.replaced('LLM("small")', options)
    assert wanted in environment.run(changed)


class VllmEnvironment(Environment):
    def variables(self) -> dict[str, str]:
        own = {"PYTHONPATH": str(ROOT), "VLLM_CPU_KVCACHE_SPACE": "1"}
        return super().variables() | own | {"VLLM_NO_USAGE_STATS": "1"}
