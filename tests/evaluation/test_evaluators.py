"""Divergence, size, and what holds for every evaluator."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from spectrim.data import BlockSettings, TokenBlocks, token_blocks
from spectrim.errors import CheckpointError, InputError, NumericalError, UnknownNameError
from spectrim.evaluation import EVALUATORS, evaluate_model, kl_divergence, perplexity, size
from spectrim.layers.quantized import rtn, sparse_2_4
from spectrim.statistics import LayerProblem
from tests.tiny_models import VOCABULARY, tiny_llama, tiny_tied, tiny_tokenizer
from tests.tolerances import BATCH_SPLIT_RELATIVE, FLOAT32_RELATIVE

TEXT = ["the cat sat on the mat", "a dog", "one two three four five six seven"]


@pytest.fixture(scope="module")
def blocks() -> TokenBlocks:
    return token_blocks(TEXT, tiny_tokenizer(), BlockSettings(length=10, keep_tail=True))


def test_a_model_does_not_diverge_from_itself(blocks: TokenBlocks) -> None:
    model = tiny_llama()
    figures = evaluate_model(model, blocks, ["kl_divergence"], reference=model)
    alone = evaluate_model(model, blocks, ["perplexity"])["perplexity"]
    assert figures.pop("reference_perplexity") == pytest.approx(alone, rel=FLOAT32_RELATIVE)
    assert figures == {"kl_divergence": 0.0, "top1_agreement": 1.0, "loss_increase": 0.0}


def test_divergence_equals_the_slow_twin(blocks: TokenBlocks) -> None:
    original, compressed = tiny_llama(0), tiny_llama(1)
    divergences, agreements = [], []
    assert blocks.mask is not None
    assert blocks.scored is not None
    for row, real, scored in zip(blocks.ids, blocks.mask, blocks.scored, strict=True):
        with torch.no_grad():
            p, q = (m(row[real][None]).logits[0].double() for m in (original, compressed))
        counted = scored[real][1:]
        p, q = p.softmax(-1)[:-1][counted], q.softmax(-1)[:-1][counted]
        divergences += (p * (p / q).log()).sum(-1).tolist()
        agreements += (p.argmax(-1) == q.argmax(-1)).tolist()
    figures = [
        kl_divergence.evaluate(compressed, blocks, kl_divergence.Options(n), original)
        for n in (1, 3)
    ]
    assert figures[1] == pytest.approx(figures[0], rel=BATCH_SPLIT_RELATIVE)
    mean = sum(divergences) / len(divergences)
    assert figures[0]["kl_divergence"] == pytest.approx(mean, rel=FLOAT32_RELATIVE)
    assert figures[0]["top1_agreement"] == sum(agreements) / len(agreements)
    losses = [evaluate_model(m, blocks, ["perplexity"])["loss"] for m in (original, compressed)]
    assert figures[0]["loss_increase"] == pytest.approx(
        losses[1] - losses[0], rel=FLOAT32_RELATIVE, abs=FLOAT32_RELATIVE
    )


def test_quantized_weights_are_parameters() -> None:
    model = tiny_llama()
    before = size.parameters(model)
    layer = model.model.layers[0].mlp
    weights = {name: getattr(layer, name).weight for name in ("up_proj", "down_proj")}
    problems = {
        name: LayerProblem(name, weight, None, None) for name, weight in weights.items()
    }
    layer.up_proj = rtn.compress(problems["up_proj"], rtn.Options(bits=4))
    assert size.parameters(model) == before
    layer.down_proj = sparse_2_4.compress(problems["down_proj"], sparse_2_4.Options())
    assert size.parameters(model) == before - weights["down_proj"].numel() // 2


def test_divergence_that_is_not_finite(blocks: TokenBlocks) -> None:
    broken = tiny_llama()
    nn.init.constant_(broken.lm_head.weight, torch.nan)
    with pytest.raises(NumericalError, match="batch of rows 0 to 6 is not finite"):
        kl_divergence.evaluate(broken, blocks, kl_divergence.Options(), tiny_llama())


def test_divergence_needs_one_vocabulary(blocks: TokenBlocks) -> None:
    config = LlamaConfig(
        vocab_size=VOCABULARY + 1,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    other = LlamaForCausalLM(config)
    with pytest.raises(InputError, match="predicts 128 tokens, the reference 129"):
        kl_divergence.evaluate(tiny_llama(), blocks, kl_divergence.Options(), other)


def test_tied_weights_count_once(blocks: TokenBlocks) -> None:
    tied, untied = tiny_tied(), tiny_llama()
    saved = VOCABULARY * tied.config.hidden_size
    assert size.parameters(untied) - size.parameters(tied) == saved
    assert size.stored_bytes(untied) - size.stored_bytes(tied) == 4 * saved
    assert size.stored_bytes(tied.bfloat16()) == 2 * size.parameters(tied)


def test_only_what_is_saved_is_stored() -> None:
    module = nn.Linear(3, 2)
    module.register_buffer("kept", torch.zeros(5, dtype=torch.int8))
    module.register_buffer("dropped", torch.zeros(5), persistent=False)
    assert size.parameters(module) == 8
    assert size.stored_bytes(module) == 4 * 8 + 5


def test_bytes_on_disk(tmp_path: Path, blocks: TokenBlocks) -> None:
    model = tiny_tied()
    model.save_pretrained(tmp_path)
    figures = evaluate_model(model, blocks, {"size": {"checkpoint": str(tmp_path)}})
    file = tmp_path / "model.safetensors"
    assert figures["disk_bytes"] == file.stat().st_size
    assert 0 < figures["disk_bytes"] - figures["stored_bytes"] < 10_000


@pytest.mark.parametrize("name", ["", "absent"])
def test_no_checkpoint_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="expected the directory of a saved model"):
        size.disk_bytes(tmp_path / name)


@pytest.mark.parametrize("name", EVALUATORS.names())
def test_every_evaluator_leaves_the_model_as_it_was(name: str, blocks: TokenBlocks) -> None:
    model, reference = tiny_llama(0).train(), tiny_llama(1)
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    figures = evaluate_model(model, blocks, [name], reference)
    assert figures
    assert all(type(value) in (int, float) for value in figures.values())
    assert [module.training for module in model.modules()] == before
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert EVALUATORS.summary(name)


def test_mode_comes_back_after_an_error(blocks: TokenBlocks) -> None:
    model = tiny_llama().train()
    nn.init.constant_(model.lm_head.weight, torch.nan)
    with pytest.raises(NumericalError):
        evaluate_model(model, blocks, ["perplexity"])
    assert model.training
    assert torch.is_grad_enabled()


def test_figures_of_several_evaluators_are_joined(blocks: TokenBlocks) -> None:
    asked = {"perplexity": {"batch_size": 2}, "kl_divergence": {}, "size": {}}
    figures = evaluate_model(tiny_llama(), blocks, asked, tiny_llama(1))
    assert list(figures) == [
        "perplexity",
        "loss",
        "predicted_tokens",
        "kl_divergence",
        "top1_agreement",
        "loss_increase",
        "reference_perplexity",
        "parameters",
        "stored_bytes",
    ]


def test_what_cannot_be_asked(blocks: TokenBlocks) -> None:
    model = tiny_llama()
    with pytest.raises(UnknownNameError, match="available: kl_divergence, matrix_entropy, nu"):
        evaluate_model(model, blocks, ["perplexities"])
    with pytest.raises(InputError, match="'perplexity' has no option"):
        evaluate_model(model, blocks, {"perplexity": {"batch": 2}})
    with pytest.raises(InputError, match="batch_size is 0, expected at least 1"):
        evaluate_model(model, blocks, {"perplexity": {"batch_size": 0}})
    with pytest.raises(InputError, match="give it as reference"):
        evaluate_model(model, blocks, ["perplexity", "kl_divergence"])
    with pytest.raises(InputError, match="give it as reference"):
        kl_divergence.evaluate(model, blocks, kl_divergence.Options())


def test_rows_longer_than_the_context() -> None:
    rows = token_blocks(["abc" * 50], tiny_tokenizer(), BlockSettings(length=129))
    with pytest.raises(InputError, match=r"rows are 129 tokens long, .* at most 128"):
        perplexity.evaluate(tiny_llama(), rows, perplexity.Options())


def test_a_foreign_tokenizer(blocks: TokenBlocks) -> None:
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    with pytest.raises(InputError, match="do not match"):
        evaluate_model(LlamaForCausalLM(config), blocks, ["perplexity"])
