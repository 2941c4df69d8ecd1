"""The parts of refinements: single blocks, balanced factors, the schedule."""

from __future__ import annotations

import copy

import pytest
import torch

from spectrim.data import TokenBlocks
from spectrim.errors import ModelError
from spectrim.layers import LAYERS, layer_class
from spectrim.refinement import block_distillation, distillation
from spectrim.runtime.cache import Cache
from spectrim.runtime.context import RunContext
from spectrim.training import losses
from spectrim.training.balanced_factors import balanced_factors, balanced_parameters
from spectrim.training.forward import BlockRunner, Tokens
from spectrim.training.inputs import TrainingInputs
from spectrim.training.output_metric import output_roots
from spectrim.training.run import TrainingRun
from spectrim.training.schedule import Schedule
from tests.checkpoint.compressing import compress
from tests.tiny_models import TINY_MODELS, tiny_llama, tiny_tokens
from tests.tolerances import FLOAT32_RELATIVE, FLOAT64_RELATIVE, OUTPUT_METRIC_RELATIVE

ROWS = torch.tensor([0, 2, 3])


def some_tokens(padded: bool) -> Tokens:
    ids = tiny_tokens(rows=5, length=10)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[2, 7:] = False
    blocks = TokenBlocks(ids, mask if padded else None, "", "random", 1)
    return Tokens(blocks, torch.device("cpu"), "float32")


@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("name", TINY_MODELS)
def test_blocks_one_by_one_are_the_model(name, padded):
    model = TINY_MODELS[name]()
    tokens = some_tokens(padded)
    runner = BlockRunner(model, tokens)
    recorded = []
    hooks = [
        block_distillation.register_forward_hook(
            lambda m, args, out: recorded.append(
                (args[0], out[0] if isinstance(out, tuple) else out)
            )
        )
        for _, block_distillation in runner.blocks
    ]
    with torch.no_grad():
        tokens.run(model, ROWS)
        for hook in hooks:
            hook.remove()
        hidden = runner.first_input(ROWS)
        assert torch.equal(hidden, recorded[0][0])
        for number in range(len(runner.blocks)):
            hidden = runner.output(number, hidden, ROWS)
            assert torch.equal(hidden, recorded[number][1])
        assert torch.isfinite(tokens.predicted(model, ROWS)[0]).all()
    assert all(
        "forward" not in vars(block_distillation) for _, block_distillation in runner.blocks
    )


def test_a_model_without_blocks_is_refused():
    model = tiny_llama()
    for module in model.modules():
        module._no_split_modules = None
    with pytest.raises(ModelError, match="distillation"):
        BlockRunner(model, some_tokens(False))


def test_a_dense_model_without_blocks_has_nothing_to_refine():
    model = tiny_llama()
    for module in model.modules():
        module._no_split_modules = None
    with pytest.raises(ModelError, match="compress it first"), balanced_parameters(model):
        pass


@pytest.mark.parametrize("kind", LAYERS.names())
def test_factors_are_balanced_and_the_same_matrix(kind):
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(*s, generator=generator).double() for s in ((9, 4), (4, 12)))
    bias = torch.randn(9, generator=generator).double()
    layer = layer_class(kind).from_factors(100 * left, right, bias)
    found_left, found_right, found_bias = balanced_factors(layer)
    weight = 100 * left @ right if layer.LOSSLESS else layer.dense()[0]
    scale = float(weight.abs().max())
    product = found_left @ found_right
    assert float((product - weight).abs().max()) < FLOAT64_RELATIVE * scale
    grams = found_left.T @ found_left - found_right @ found_right.T
    assert float(grams.abs().max()) < FLOAT64_RELATIVE * scale
    assert torch.allclose(found_bias, bias)


@pytest.mark.parametrize("name", ["llama", "tied", "gpt2"])
@pytest.mark.parametrize("kind", LAYERS.names())
def test_training_form_computes_the_same(name, kind):
    model = TINY_MODELS[name]()
    compress(model, kind)
    ids = tiny_tokens()
    with torch.no_grad():
        before = model(ids).logits
        with balanced_parameters(model) as parameters:
            inside = model(ids).logits
            assert parameters.keys() <= dict(model.named_parameters()).keys()
            assert all("embed" not in key and "wte" not in key for key in parameters)
        after = model(ids).logits
    scale = float(before.abs().max())
    assert float((inside - before).abs().max()) < 10 * FLOAT32_RELATIVE * scale
    assert float((after - before).abs().max()) < 10 * FLOAT32_RELATIVE * scale


def test_a_parameter_shared_by_two_blocks_stays_shared():
    model = tiny_llama()
    first, second = (layer.input_layernorm for layer in model.model.layers)
    second.weight = first.weight
    original = first.weight
    with balanced_parameters(model) as parameters:
        assert second.weight is first.weight is not original
        assert sum(value is first.weight for value in parameters.values()) == 1


def test_a_parameter_used_outside_the_blocks_is_not_trained():
    model = tiny_llama()
    norm = model.model.layers[0].input_layernorm
    norm.weight = model.model.norm.weight
    with balanced_parameters(model) as parameters:
        assert norm.weight is model.model.norm.weight
        assert all(value is not norm.weight for value in parameters.values())


def stop_inside(model) -> None:
    with balanced_parameters(model) as parameters:
        for parameter in parameters.values():
            parameter.data.zero_()
        raise ValueError("stop")


def test_an_error_puts_the_model_back():
    model = tiny_llama()
    compress(model, "pivoted")
    before = dict(model.named_parameters())
    values = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="stop"):
        stop_inside(model)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in values.items())


def test_every_epoch_visits_every_sequence_once():
    schedule = Schedule(steps=8, rows=3, learning_rate=1.0, warmup=2, seed=0)
    chosen = [schedule.batch_indices(step, 12) for step in range(8)]
    for epoch in (chosen[:4], chosen[4:]):
        assert sorted(torch.cat(epoch).tolist()) == list(range(12))
    assert torch.cat(chosen[:4]).tolist() != torch.cat(chosen[4:]).tolist()


def test_the_rate_rises_and_falls():
    schedule = Schedule(steps=20, rows=1, learning_rate=2.0, warmup=4, seed=0)
    rates = [schedule.rate(step) for step in range(20)]
    assert rates[:5] == sorted(rates[:5])
    assert rates[4] == max(rates) == 2.0
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0 < rates[-1] < 0.1


@pytest.mark.parametrize(
    "module", [block_distillation, distillation], ids=["block_distillation", "distillation"]
)
def test_the_rate_follows_the_distance_at_the_start(monkeypatch, module):
    """Twice the weight error is about four times the divergence and twice the rate; a rate
    never exceeds the one given."""
    seen: list[Schedule] = []
    monkeypatch.setattr(
        TrainingRun, "train_stage", lambda self, n, stage, schedule: seen.append(schedule)
    )
    options = module.Options(tokens=256, learning_rate=1e-3, lr_scaling="kl")
    ids, sizes = tiny_tokens(rows=8, length=16), (0.01, 0.02)
    for size in sizes:
        compressed = copy.deepcopy(tiny_llama())
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in compressed.named_parameters():
                if name.endswith("down_proj.weight"):
                    parameter += size * torch.randn(parameter.shape, generator=generator)
        blocks = TokenBlocks(ids, None, str(size), "random", 1)
        module.refine(TrainingInputs(tiny_llama(), compressed, blocks), options, RunContext())
    per_model = len(seen) // len(sizes)
    small, large = (schedule.learning_rate for schedule in seen[::per_model])
    assert small < options.learning_rate
    assert 1.8 < large / small < 2.2


@pytest.mark.parametrize(
    "module", [block_distillation, distillation], ids=["block_distillation", "distillation"]
)
def test_a_finished_run_is_found_before_the_distance_is_measured(monkeypatch, module, tmp_path):
    blocks = TokenBlocks(tiny_tokens(rows=4, length=16), None, "", "random", 1)
    options = module.Options(tokens=64, lr_scaling="kl")
    trained = []
    for away in (0.25, None):
        compressed = copy.deepcopy(tiny_llama())
        with torch.no_grad():
            compressed.model.layers[0].mlp.down_proj.weight.mul_(1.1)
        monkeypatch.setattr(losses, "mean_divergence", lambda *g, a=away: a or 1 / 0)
        inputs = TrainingInputs(tiny_llama(), compressed, blocks)
        module.refine(inputs, options, RunContext(Cache(tmp_path)))
        trained.append(compressed.state_dict())
    assert all(torch.equal(value, trained[1][name]) for name, value in trained[0].items())


@pytest.mark.parametrize(("away", "share"), [(4.0, 1.0), (0.25, 0.5), (-1e-9, 0.0)])
def test_the_rate_is_never_more_than_the_one_given(monkeypatch, away, share):
    monkeypatch.setattr(losses, "mean_divergence", lambda *given: away)
    model, given = tiny_llama(), Schedule(8, 4, 1e-3, 0, 0)
    found = losses.scale_by_divergence(given, model, model, some_tokens(padded=False))
    assert found.learning_rate == share * given.learning_rate


@pytest.mark.parametrize("name", ["llama", "gpt2", "moe"])
def test_errors_cost_what_the_output_metric_says(name):
    """KL(p(h) || p(h + e)) against 1/2 e^T C_g e for small random errors of the last block's
    output, whose every token's prediction depends on that token alone."""
    model = TINY_MODELS[name]().float()
    ids = tiny_tokens(rows=96, length=12)
    tokens = Tokens(TokenBlocks(ids, None, "", "random", 1), torch.device("cpu"), "float32")
    root = output_roots(model, tokens, 8)[-1]
    runner = BlockRunner(model, tokens)
    _, last = runner.blocks[-1]
    rows = torch.arange(len(tokens))
    generator = torch.Generator().manual_seed(1)
    predicted, measured = 0.0, 0.0
    with torch.no_grad():
        wanted = tokens.run(model, rows).logits
        for _ in range(8):
            error = 0.002 * torch.randn(model.config.hidden_size, generator=generator)

            def shifted(module, args, output, error=error):
                if isinstance(output, tuple):
                    return (output[0] + error, *output[1:])
                return output + error

            hook = last.register_forward_hook(shifted)
            logits = tokens.run(model, rows).logits
            hook.remove()
            measured += float(losses.divergence(wanted, logits, tokens.real(rows)))
            predicted += 0.5 * float((error @ root).square().sum()) / ids.numel()
    assert abs(measured / predicted - 1) < OUTPUT_METRIC_RELATIVE
