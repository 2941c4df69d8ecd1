"""A checkpoint that holds each basis once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModel

from spectrim.checkpoint import export_dense, export_self_contained, load
from spectrim.evaluation import size
from spectrim.models.replace import factored_layers, shared_bases
from spectrim.pipeline.replace import replace_layers
from tests.checkpoint.test_fresh_process import WITHOUT_SPECTRIM, run
from tests.pipeline.basis_groups.cases import cases, logits
from tests.tiny_models import tiny_tokens
from tests.tolerances import (
    DENSE_EXPORT_ABSOLUTE,
)


def stored(directory: Path) -> dict[str, int]:
    """Numbers by tensor name, of what is on disk."""
    with safe_open(directory / "model.safetensors", framework="pt") as file:
        return {key: file.get_tensor(key).numel() for key in file.keys()}  # noqa: SIM118


@cases
def test_the_cost_is_what_is_stored(done, case):
    found = done[case]
    assert any(found.plan.layers[name].members for name in found.plan.ranks)
    spent = 0
    for name, layer in found.plan.layers.items():
        inside = tuple(f"{member}." for member in found.plan.members(name))
        numbers = [
            count
            for key, count in stored(found.directory).items()
            if key.startswith(inside) and key.endswith("weight")
        ]
        if layer.members and layer.rank:
            assert sum(numbers) == layer.rank * sum(layer.shape)
        spent += sum(numbers)
    assert spent == round(found.plan.kept * found.decomposition.weights)


@cases
def test_the_basis_is_on_disk_once(done, case):
    found = done[case]
    keys = stored(found.directory)
    for owner, names in shared_bases(found.compressed).items():
        assert f"{owner}.right.weight" in keys
        assert all(f"{name}.right.weight" not in keys for name in names[1:])
        assert all(f"{name}.left.weight" in keys for name in names)
    state = found.compressed.state_dict()
    distinct = {tensor.data_ptr(): tensor.numel() for tensor in state.values()}
    assert sum(keys.values()) == sum(distinct.values())
    assert size.parameters(found.compressed) <= sum(distinct.values())
    assert size.stored_bytes(found.compressed) == sum(
        {t.data_ptr(): t.numel() * t.element_size() for t in state.values()}.values()
    )


@cases
def test_loaded_is_what_was_in_memory(done, case):
    found = done[case]
    model, _ = load(found.directory)
    assert torch.equal(logits(model), found.logits)
    assert shared_bases(model) == shared_bases(found.compressed)
    for owner, names in shared_bases(model).items():
        held = model.get_submodule(owner).right
        assert all(model.get_submodule(name).owner.right is held for name in names)


@cases
def test_saved_again_is_the_same_file(done, case, tmp_path):
    model, _ = load(done[case].directory)
    model.save_pretrained(tmp_path)
    first = (done[case].directory / "model.safetensors").read_bytes()
    assert (tmp_path / "model.safetensors").read_bytes() == first


@pytest.mark.slow
def test_fresh_processes(done, tmp_path):
    directories = [case.directory for case in done.values()]
    found = run(tmp_path, "import spectrim\n", directories)
    for case in done.values():
        assert torch.equal(found[str(case.directory)], case.logits)


@pytest.mark.slow
def test_without_spectrim(done, tmp_path):
    case = done["qwen2_bias", "adjacent"]
    own = export_self_contained(case.directory, tmp_path / "own")
    dense = export_dense(case.directory, tmp_path / "dense")
    found = run(tmp_path, WITHOUT_SPECTRIM, [own, dense], trust_remote_code=True)
    assert torch.equal(found[str(own)], case.logits)
    assert float((found[str(dense)] - case.logits).abs().max()) <= DENSE_EXPORT_ABSOLUTE


@pytest.mark.parametrize("name", ["gpt2", "tied", "gqa"])
def test_dense_export_is_the_same_function(done, name, tmp_path):
    case = done[name, "adjacent"]
    plain, _ = load(export_dense(case.directory, tmp_path / "dense"))
    assert not dict(factored_layers(plain))
    assert float((logits(plain) - case.logits).abs().max()) <= DENSE_EXPORT_ABSOLUTE


def test_a_bare_base_model_loads(done):
    case = done["llama", "adjacent"]
    base = AutoModel.from_pretrained(case.directory)
    inner = case.compressed.model
    with torch.no_grad():
        ids = tiny_tokens()
        assert torch.equal(base(ids).last_hidden_state, inner(ids).last_hidden_state)


def test_casting_and_copies_keep_the_basis_shared(done):
    case = done["llama", "adjacent"]
    half = replace_layers(case.model, case.decomposition, case.plan, torch.bfloat16)
    assert shared_bases(half) == shared_bases(case.compressed)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert torch.isfinite(logits(half)).all()
