"""What every statistic promises: a sum over real tokens, whatever the batches.

A new statistic goes through all of it; those with a line in REFERENCES are also compared with
autograd on the same model in float64.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from spectrim.calibration import CalibrationSettings, calibrate
from spectrim.calibration.in_memory import calibrate_steps
from spectrim.data import TokenBlocks
from spectrim.errors import InputError
from spectrim.models.experts import fused_expert_names, split_experts
from spectrim.models.targets import Target, find_targets
from spectrim.statistics import STATISTICS, Calibration
from spectrim.statistics.weight_gradients import BUCKETS
from tests.tiny_models import TINY_MODELS, tiny_llama, tiny_moe, tiny_tokens
from tests.tolerances import AUTOGRAD_RELATIVE, BATCH_SPLIT_RELATIVE

ALL = tuple(STATISTICS.names())
LENGTH = 12
statistics = pytest.mark.parametrize("statistic", ALL)


def blocks_of(ids: Tensor, mask: Tensor | None = None) -> TokenBlocks:
    return TokenBlocks(ids, mask, "fingerprint", "test", len(ids))


def built(name: str) -> tuple[PreTrainedModel, list[Target]]:
    model = TINY_MODELS[name]()
    split_experts(model, fused_expert_names(model))
    return model, find_targets(model)


def settings_for(rows: int, **changes: object) -> CalibrationSettings:
    return CalibrationSettings(ALL, tokens_per_batch=rows * LENGTH, **changes)


def sums(calibration: Calibration, statistic: str) -> dict[str, Tensor]:
    return {
        f"{key}.{entry}": tensor
        for key, state in calibration.states[statistic].items()
        for entry, tensor in state.items()
    }


def assert_same(
    a: Calibration, b: Calibration, statistic: str, relative: float = BATCH_SPLIT_RELATIVE
) -> None:
    assert a.counts == b.counts
    assert a.tokens == b.tokens
    assert a.groups == b.groups
    left, right = sums(a, statistic), sums(b, statistic)
    assert left.keys() == right.keys()
    for key, tensor in left.items():
        scale = float(right[key].norm())
        assert float((tensor - right[key]).norm()) <= relative * scale + 1e-12, key


@pytest.fixture(scope="module")
def llama() -> tuple[PreTrainedModel, list[Target]]:
    return built("llama")


@pytest.fixture(scope="module")
def one_pass(llama) -> Calibration:
    return calibrate(*llama, blocks_of(tiny_tokens(5, LENGTH)), settings_for(5))


@pytest.fixture(scope="module")
def two_by_two(llama) -> Calibration:
    return calibrate(*llama, blocks_of(tiny_tokens(5, LENGTH)), settings_for(2))


@statistics
def test_module_declares_itself(statistic):
    module = STATISTICS.get(statistic)
    assert module.__doc__
    assert module.REFERENCE
    assert module.SIDE in ("input", "layer")
    assert isinstance(module.NEEDS_GRADIENT, bool)
    for tensor in module.empty((5, 3)).values():
        assert tensor.dtype == torch.float64
        assert not tensor.any()


@statistics
def test_zero_tokens_finish_without_division(statistic):
    module = STATISTICS.get(statistic)
    finished = module.finish(module.empty((5, 3)), 0)
    tensors = [finished] if isinstance(finished, Tensor) else list(vars(finished).values())
    assert all(torch.isfinite(tensor).all() for tensor in tensors)


@statistics
def test_independent_of_the_batch_split(statistic, one_pass, two_by_two):
    assert_same(two_by_two, one_pass, statistic)


@pytest.fixture(scope="module")
def merged(llama) -> Calibration:
    """First three rows, and a run of their own over the rest, merged."""
    ids = tiny_tokens(5, LENGTH)
    first = calibrate(*llama, blocks_of(ids[:3]), settings_for(5))
    rest = calibrate(*llama, blocks_of(ids), settings_for(5), _after(llama, ids, 3))
    first.merge(rest)
    return first


def _after(model_and_targets, ids: Tensor, done: int) -> Calibration:
    """An empty calibration that counts `done` rows as another process's."""
    fresh = next(calibrate_steps(*model_and_targets, blocks_of(ids), settings_for(1)))
    fresh.provenance["sequences_done"] = done
    return fresh


@statistics
def test_two_halves_merge_to_one_pass(statistic, merged, one_pass):
    assert_same(merged, one_pass, statistic)


@pytest.fixture(scope="module", params=["right", "left"])
def padded_and_not(llama, request) -> tuple[Calibration, Calibration]:
    """Rows of 12, 7 and 9 tokens: padded together, and each by itself without padding.

    Left padding too: rotary positions are relative, so only attention could tell.
    """
    ids, lengths = tiny_tokens(3, LENGTH, seed=4), torch.tensor([12, 7, 9])
    mask = torch.arange(LENGTH) < lengths[:, None]
    if request.param == "left":
        mask = mask.flip(1)
    padded = calibrate(*llama, blocks_of(ids * mask, mask), settings_for(3))
    apart = None
    for row, length in enumerate(lengths.tolist()):
        short = ids[: row + 1][:, mask[row]]
        assert short.shape[1] == length
        part = calibrate(*llama, blocks_of(short), settings_for(3), _after(llama, short, row))
        if apart is None:
            apart = part
        else:
            apart.merge(part)
    assert apart is not None
    return padded, apart


@statistics
def test_padded_tokens_do_not_count(statistic, padded_and_not):
    padded, apart = padded_and_not
    assert padded.tokens == 28
    assert_same(padded, apart, statistic)


def test_layers_that_share_an_input_share_a_group(llama, one_pass):
    groups = one_pass.groups
    block = "model.layers.1."
    q, gate = block + "self_attn.q_proj", block + "mlp.gate_proj"
    assert [groups[block + f"self_attn.{n}_proj"] for n in "qkvo"] == [
        q, q, q, block + "self_attn.o_proj",
    ]  # fmt: skip
    assert groups[gate] == groups[block + "mlp.up_proj"] == gate
    assert groups[block + "mlp.down_proj"] == block + "mlp.down_proj"
    assert set(groups) == {target.name for target in llama[1]}
    stored = one_pass.states["input_covariance"]
    assert set(stored) == set(groups.values())
    q_x = one_pass.layer(q)["input_covariance"]
    k_x = one_pass.layer(q.replace("q_proj", "k_proj"))["input_covariance"]
    assert torch.equal(q_x, k_x)


@contextmanager
def recorded(model: nn.Module, targets: list[Target]) -> Iterator[dict[str, list]]:
    """Inputs and outputs (with gradients kept) of every call of every target."""
    seen: dict[str, list] = {target.name: [] for target in targets}

    def hook_for(name):
        def hook(module, inputs, output):
            output.retain_grad()
            seen[name].append((inputs[0].detach().flatten(0, -2), output))

        return hook

    handles = [
        model.get_submodule(t.name).register_forward_hook(hook_for(t.name)) for t in targets
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def autograd_statistics(
    model: PreTrainedModel, targets: list[Target], ids: Tensor
) -> dict[str, dict[str, Tensor]]:
    """Every built-in statistic per layer, one sequence at a time, in float64."""
    model = copy.deepcopy(model).double()
    result: dict[str, dict[str, Tensor]] = {}

    def add(layer: str, entry: str, value: Tensor) -> None:
        of_layer = result.setdefault(layer, {})
        of_layer[entry] = of_layer.get(entry, 0) + value.detach()

    for index, row in enumerate(ids):
        model.zero_grad()
        with recorded(model, targets) as seen:
            logits = model(input_ids=row[None], use_cache=False).logits[0, :-1]
            nn.functional.cross_entropy(logits, row[1:], reduction="sum").backward()
        for name, calls in seen.items():
            for x, output in calls:
                y, g = output.detach().flatten(0, -2), output.grad.flatten(0, -2)
                add(name, "count", torch.tensor(len(x)))
                add(name, "input_covariance.sum", x.T @ x)
                add(name, "input_magnitude.sum", x.abs().sum(0))
                add(name, "input_mean.sum", x.sum(0))
                add(name, "output_covariance.sum", y.sum(0))
                add(name, "output_covariance.outer", y.T @ y)
                add(name, "gradient_covariance.sum", g.T @ g)
            module = model.get_submodule(name)
            if (gradient := module.weight.grad) is not None:
                gradient = gradient.T if isinstance(module, Conv1D) else gradient
                buckets = torch.zeros(BUCKETS, *gradient.shape, dtype=torch.float64)
                buckets[index % BUCKETS] = gradient
                add(name, "weight_gradients.sum", buckets)
                add(name, "row_fisher.sum", gradient.square().sum(1))
                add(name, "mean_gradient.sum", gradient)
    return result


@pytest.mark.parametrize("name", sorted(TINY_MODELS))
def test_equal_to_autograd_in_float64(name):
    model, targets = built(name)
    ids = tiny_tokens(3, LENGTH, seed=2)
    calibration = calibrate(model, targets, blocks_of(ids), settings_for(2))
    reference = autograd_statistics(model, targets, ids)
    compared = set()
    for target in targets:
        expected = reference.get(target.name, {"count": torch.tensor(0)})
        assert calibration.counts[target.name] == int(expected["count"])
        for statistic in ALL:
            side = STATISTICS.get(statistic).SIDE
            key = calibration.groups[target.name] if side == "input" else target.name
            for entry, tensor in calibration.states[statistic][key].items():
                value = expected.get(f"{statistic}.{entry}")
                if value is None:
                    continue
                error = float((tensor - value).norm())
                assert error <= AUTOGRAD_RELATIVE * float(value.norm()) + 1e-12, (
                    key,
                    statistic,
                )
                compared.add(statistic)
    assert len(compared) >= 7


def test_an_expert_without_tokens_has_zero_sums():
    model = tiny_moe()
    split_experts(model, fused_expert_names(model))
    keep_off_expert_zero(model.get_submodule("model.layers.0.mlp.gate"))
    targets = find_targets(model)
    calibration = calibrate(model, targets, blocks_of(tiny_tokens(2, LENGTH)), settings_for(2))
    name = "model.layers.0.mlp.experts.up.0"
    assert calibration.counts[name] == 0
    assert calibration.layer(name).share == 0
    assert not calibration.layer(name)["input_covariance"].any()
    reached = [n for n, c in calibration.counts.items() if c and "experts" in n]
    assert reached
    for layer in reached:
        assert torch.isfinite(calibration.layer(layer)["gradient_covariance"]).all()
        assert 0 < calibration.layer(layer).share <= 1


def keep_off_expert_zero(router: nn.Module) -> None:
    """Route every token to experts one, two, ..."""
    original = router.forward

    def forward(*args, **kwargs):
        *rest, indices = original(*args, **kwargs)
        return *rest, torch.arange(1, 1 + indices.shape[1]).expand(indices.shape)

    router.forward = forward


def hook_count(model: nn.Module) -> int:
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
        for m in model.modules()
    )


def state_of(model: nn.Module) -> tuple:
    return (
        hook_count(model),
        [p.requires_grad for p in model.parameters()],
        [m.training for m in model.modules()],
        [p.grad is None for p in model.parameters()],
    )


@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_left_as_it_was(training):
    model, targets = built("llama")
    model.train(training)
    next(model.parameters()).requires_grad_(False)
    before = state_of(model)
    calibrate(model, targets, blocks_of(tiny_tokens(2, LENGTH)), settings_for(1))
    assert state_of(model) == before
    steps = calibrate_steps(model, targets, blocks_of(tiny_tokens(3, LENGTH)), settings_for(1))
    next(steps), next(steps)
    steps.close()
    assert state_of(model) == before


def test_mixed_training_modes_are_restored():
    model, targets = built("llama")
    model.train()
    model.model.layers[0].eval()
    before = state_of(model)
    calibrate(model, targets, blocks_of(tiny_tokens(2, LENGTH)), settings_for(1))
    assert state_of(model) == before


def test_sampled_labels_do_not_depend_on_the_batch_split():
    model, targets = built("llama")
    ids = tiny_tokens(5, LENGTH)
    whole = calibrate(model, targets, blocks_of(ids), settings_for(5, labels="sampled"))
    split = calibrate(model, targets, blocks_of(ids), settings_for(2, labels="sampled"))
    data = calibrate(model, targets, blocks_of(ids), settings_for(5))
    for statistic in ALL:
        assert_same(split, whole, statistic)
    name = targets[0].name
    assert not torch.allclose(
        whole.layer(name)["gradient_covariance"], data.layer(name)["gradient_covariance"]
    )


def test_no_gradient_is_computed_when_no_statistic_needs_one(monkeypatch):
    model, targets = built("llama")
    forward_only = tuple(n for n in ALL if not STATISTICS.get(n).NEEDS_GRADIENT)
    monkeypatch.setattr(Tensor, "backward", lambda *a, **k: pytest.fail("backward ran"))
    settings = CalibrationSettings(forward_only)
    result = calibrate(model, targets, blocks_of(tiny_tokens(2, LENGTH)), settings)
    assert set(result.states) == set(forward_only)
    assert result.tokens == 24


def test_unknown_statistics_and_labels_are_input_errors():
    with pytest.raises(InputError, match="no_such"):
        CalibrationSettings(("no_such",))
    with pytest.raises(InputError, match="labels"):
        CalibrationSettings(ALL, labels="invented")


def test_weights_are_not_touched():
    model = tiny_llama()
    before = {n: p.clone() for n, p in model.named_parameters()}
    calibrate(model, find_targets(model), blocks_of(tiny_tokens(2, LENGTH)), settings_for(2))
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
