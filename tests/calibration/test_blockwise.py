"""One block in memory at a time: the same sums as with the whole model, and only one block."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from spectrim.calibration import CalibrationSettings, calibrate
from spectrim.calibration.blockwise import BlockwiseWalk, Places
from spectrim.data import TokenBlocks
from spectrim.errors import CheckpointError, ModelError
from spectrim.models.experts import fused_expert_names, split_experts
from spectrim.models.offload import Activations, StreamedModel
from spectrim.models.targets import find_targets
from spectrim.runtime.snapshots import Snapshots
from spectrim.statistics import STATISTICS, Calibration
from tests.calibration.walking import calibrate_blockwise
from tests.tiny_models import TINY_MODELS, tiny_gemma, tiny_llama, tiny_tokens
from tests.tolerances import BATCH_SPLIT_RELATIVE

LENGTH = 12
EVERYTHING = CalibrationSettings(tuple(STATISTICS.names()), tokens_per_batch=2 * LENGTH)
FORWARD = CalibrationSettings(("input_covariance",), tokens_per_batch=2 * LENGTH)
SAMPLED = CalibrationSettings(
    ("gradient_covariance",), labels="sampled", temperature=2.0, tokens_per_batch=2 * LENGTH
)


MODELS: dict[str, Callable[[], PreTrainedModel]] = TINY_MODELS | {"gemma": tiny_gemma}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for name, build in MODELS.items():
        build().save_pretrained(root / name, max_shard_size="60KB")
    return {name: root / name for name in MODELS}


def streamed(directory: Path, dtype: torch.dtype = torch.float32) -> StreamedModel:
    files = sorted(directory.glob("*.safetensors"))
    assert len(files) > 1, "several shards"
    return StreamedModel(AutoConfig.from_pretrained(directory), files, dtype)


def blocks(padded: bool, rows: int = 5) -> TokenBlocks:
    lengths = torch.tensor([12, 7, 9, 12, 12, 4, 11])[:rows]
    mask = torch.arange(LENGTH) < lengths[:, None] if padded else None
    return TokenBlocks(tiny_tokens(rows, LENGTH), mask, "same", "test", rows)


def whole(
    directory: Path,
    dtype: torch.dtype,
    data: TokenBlocks,
    settings: CalibrationSettings,
    include: tuple[str, ...] = (),
) -> Calibration:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    split_experts(model, fused_expert_names(model))
    return calibrate(model, find_targets(model, include), data, settings)


def assert_close(one: Calibration, other: Calibration, relative: float) -> None:
    assert one.groups == other.groups
    assert one.counts == other.counts
    assert one.tokens == other.tokens
    assert one.provenance == other.provenance
    assert set(one.states) == set(other.states)
    for statistic, by_layer in other.states.items():
        assert set(one.states[statistic]) == set(by_layer)
        for key, state in by_layer.items():
            found = one.states[statistic][key]
            for entry, tensor in state.items():
                allowed = relative * float(tensor.abs().max())
                error = float((found[entry] - tensor).abs().max())
                assert error <= allowed, (statistic, key, entry, error, allowed)


@pytest.mark.few(3)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", MODELS)
def test_all_statistics_are_those_of_the_whole_model(saved, tmp_path, name, dtype):
    """To the bit: the same batches in the same order, whatever is on disk meanwhile."""
    expected = whole(saved[name], dtype, blocks(padded=True), EVERYTHING)
    stream = streamed(saved[name], dtype)
    places = Places(Activations(tmp_path / "a", 2000), tmp_path / "s")
    targets = find_targets(stream.model)
    found = calibrate_blockwise(stream, targets, blocks(padded=True), EVERYTHING, places)
    assert_close(found, expected, 0.0)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("settings", [FORWARD, SAMPLED], ids=["forward", "sampled"])
def test_head_and_logits_in_pieces(saved, tmp_path, settings):
    expected = whole(saved["llama"], torch.float32, blocks(padded=False), settings, (".",))
    stream = streamed(saved["llama"])
    places = Places(Activations(tmp_path / "a", 10**9), None, logits_rows=1)
    targets = find_targets(stream.model, ["."])
    assert any(target.name == "lm_head" for target in targets)
    found = calibrate_blockwise(stream, targets, blocks(padded=False), settings, places)
    assert_close(found, expected, BATCH_SPLIT_RELATIVE)


class Killed(Exception):
    pass


@pytest.mark.few(1)
@pytest.mark.parametrize("units", range(1, 6))
def test_goes_on_at_the_unit_where_it_stopped(saved, tmp_path, units, monkeypatch):
    """Stopped within each unit, after what it did to the disk, and run again."""
    expected = whole(saved["moe"], torch.float64, blocks(padded=True), EVERYTHING)
    stream = streamed(saved["moe"], torch.float64)
    targets = find_targets(stream.model)
    snapshots = Snapshots(tmp_path / "run")
    places = Places(Activations(tmp_path / "a", 0), tmp_path / "s", snapshots=snapshots)
    with monkeypatch.context() as patch:
        first = BlockwiseWalk(stream, targets, blocks(padded=True), EVERYTHING, places)
        note = first._note

        def killed(done: int) -> None:
            if done == units:
                raise Killed
            note(done)

        patch.setattr(first, "_note", killed)
        with pytest.raises(Killed):
            list(first.steps())
    again = BlockwiseWalk(stream, targets, blocks(padded=True), EVERYTHING, places)
    again_units: list[int] = []
    unit = again._unit
    again._unit = lambda n: again_units.append(n) or unit(n)  # type: ignore[method-assign]
    list(again.steps())
    assert again_units == list(range(units - 1, again.units))
    assert_close(again.result(), expected, 0.0)


def test_only_one_block_is_resident(saved, tmp_path):
    stream = streamed(saved["llama"])
    most = 0
    load = stream.load

    def counted(name: str) -> None:
        nonlocal most
        load(name)
        resident = [b for b in stream.blocks if not _on_meta(stream.model.get_submodule(b))]
        most = max(most, len(resident))

    stream.load = counted  # type: ignore[method-assign]
    targets = find_targets(stream.model)
    places = Places(Activations(tmp_path / "a", 0), tmp_path / "s")
    calibrate_blockwise(stream, targets, blocks(padded=False), EVERYTHING, places)
    assert most == 1
    assert _on_meta(stream.model)


def _on_meta(module: torch.nn.Module) -> bool:
    return all(parameter.is_meta for parameter in module.parameters())


def test_no_state_is_held(saved, tmp_path):
    stream = streamed(saved["llama"])
    places = Places(Activations(tmp_path / "a", 10**9), tmp_path / "s")
    targets = find_targets(stream.model)
    found = calibrate_blockwise(stream, targets, blocks(padded=False), FORWARD, places)
    states = found.states["input_covariance"]
    key = next(iter(states))
    assert states[key]["sum"] is not states[key]["sum"]
    for path in (tmp_path / "s").iterdir():
        path.unlink()
    with pytest.raises(Exception, match="no file"):
        states[key]


def test_a_layer_before_the_blocks_is_refused(saved, tmp_path):
    stream = streamed(saved["llama"])
    stream.model.model.extra = torch.nn.Linear(32, 32, device="meta")
    targets = find_targets(stream.model, ["extra"])
    places = Places(Activations(tmp_path / "a", 0), None)
    with pytest.raises(ModelError, match=r"model\.extra is neither in a block nor after"):
        calibrate_blockwise(stream, targets, blocks(padded=False), FORWARD, places)


def test_a_model_that_computes_between_blocks_is_refused(saved, tmp_path):
    stream = streamed(saved["llama"])
    second = stream.model.model.layers[1]
    second.register_forward_pre_hook(lambda m, args: (args[0] * 2, *args[1:]))
    places = Places(Activations(tmp_path / "a", 0), None)
    with pytest.raises(ModelError, match="between its blocks"):
        calibrate_blockwise(
            stream, find_targets(stream.model), blocks(padded=False), FORWARD, places
        )


def test_nan_weights_are_named(tmp_path):
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = float("nan")
    model.save_pretrained(tmp_path / "m", max_shard_size="60KB")
    stream = streamed(tmp_path / "m")
    places = Places(Activations(tmp_path / "a", 0), None)
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.weight .* has 1 values"):
        calibrate_blockwise(
            stream, find_targets(stream.model), blocks(padded=False), FORWARD, places
        )


def test_a_missing_shard_is_named(saved, tmp_path):
    files = sorted(saved["llama"].glob("*.safetensors"))[:-1]
    config = AutoConfig.from_pretrained(saved["llama"])
    with pytest.raises(CheckpointError, match=r"missing"):
        StreamedModel(config, files, torch.float32)
