"""Graphs are run in ONNX Runtime at batches and lengths that they were not traced with."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch

from spectrim.checkpoint import export_onnx, load, save_compressed
from spectrim.errors import InputError, ModelError
from tests.checkpoint.compressing import compress
from tests.tiny_models import tiny_gqa, tiny_moe, tiny_qwen2_bias, tiny_tokenizer, tiny_tokens
from tests.tolerances import ONNX_ABSOLUTE

pytestmark = pytest.mark.slow

MODELS = {"lowrank": tiny_gqa, "pivoted": tiny_qwen2_bias}
SHAPES = ((1, 1), (2, 12), (5, 33))


@pytest.fixture(scope="module", autouse=True)
def _packages():
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"needs {name}, of the extra 'onnx'")


@pytest.fixture(scope="module", params=MODELS)
def exported(request, tmp_path_factory):
    """A compressed checkpoint and the directory of its graph."""
    root = tmp_path_factory.mktemp("onnx")
    model = MODELS[request.param]()
    config = compress(model, request.param)
    save_compressed(model, tiny_tokenizer(), root / "checkpoint", config)
    return root / "checkpoint", export_onnx(root / "checkpoint", root / "graph")


@torch.no_grad()
def test_the_logits_are_the_models(exported):
    import onnxruntime

    checkpoint, directory = exported
    model, _ = load(checkpoint)
    session = onnxruntime.InferenceSession(directory / "model.onnx")
    for rows, length in SHAPES:
        ids = tiny_tokens(rows, length)
        mask = torch.ones_like(ids)
        mask[0, : length // 3] = 0
        [found] = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        wanted = model(input_ids=ids, attention_mask=mask).logits
        difference = (torch.from_numpy(found) - wanted)[mask.bool()].abs().max()
        assert difference <= ONNX_ABSOLUTE, (rows, length)


def test_the_factors_stay_apart(exported):
    """The graph holds the factors, not their products."""
    import onnx

    checkpoint, directory = exported
    model, _ = load(checkpoint)
    shapes = {
        tuple(sorted(tensor.dims))
        for tensor in onnx.load(directory / "model.onnx").graph.initializer
    }
    layer = model.model.layers[0].mlp.up_proj
    assert tuple(sorted((layer.out_features, layer.in_features))) not in shapes
    assert any(layer.rank in shape for shape in shapes)


def test_the_tokenizer_and_the_origin_come_with_it(exported):
    checkpoint, directory = exported
    assert (directory / "tokenizer.json").is_file()
    kept = json.loads((directory / "spectrim_provenance.json").read_text())
    config = json.loads((checkpoint / "config.json").read_text())
    assert kept["layers"] == config["quantization_config"]["layers"]
    with pytest.raises(InputError, match="overwrite"):
        export_onnx(checkpoint, directory)


def test_what_no_graph_holds_is_refused(tmp_path, capfd):
    """Experts take the tokens that the router gives them."""
    model = tiny_moe()
    save_compressed(model, None, tmp_path / "a", compress(model, "lowrank"))
    capfd.readouterr()
    with pytest.raises(ModelError, match="Qwen3MoeForCausalLM cannot be written as a graph"):
        export_onnx(tmp_path / "a", tmp_path / "b")
    assert not (tmp_path / "b").exists()
    assert "forward" not in capfd.readouterr().err


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"onnx, onnxscript, onnxruntime: pip install"):
        export_onnx(tmp_path / "a", tmp_path / "b")
