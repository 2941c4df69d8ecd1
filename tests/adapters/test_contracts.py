"""What every spectral adapter promises, on every kind of base."""

from __future__ import annotations

import copy
import json

import peft
import pytest
import torch
from torch import nn

from spectrim.adapters import ADAPTERS, config_class, save_lora, to_lora
from spectrim.adapters._tuner import spectral_layers
from spectrim.errors import InputError
from spectrim.layers import LAYERS, CompactLinear
from spectrim.pipeline.finetune import QUANTIZED_BASES
from spectrim.pipeline.quantize_factors import quantize_all
from tests.adapters.building import NAMES, adapted, cases, config, logits, moved, names, trained
from tests.adapters.test_qlora import codes
from tests.pipeline.test_finetune import small
from tests.tiny_models import TINY_MODELS, tiny_tokens
from tests.tolerances import MERGED_ABSOLUTE, PRODUCT_ABSOLUTE

KINDS = LAYERS.names()


def bases(options: dict) -> tuple[str, ...]:
    """Plain, transposed (`Conv1D`) and wide layers; other options meet one of them."""
    return ("gqa",) if options else ("gqa", "gpt2")


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@names
def test_module_declares_itself(name):
    module = ADAPTERS.get(name)
    assert ADAPTERS.summary(name)
    assert module.REFERENCE
    assert module.LEARNING_RATE > 0
    assert hasattr(module, "pair") != hasattr(module, "delta")
    made = config_class(name)
    assert made.__name__ == f"{module.TITLE}Config"
    assert made().peft_type == name.upper()
    with pytest.raises(InputError, match=r"-1|0"):
        made(r=-1)
    with pytest.raises(TypeError, match="no_such_option"):
        made(no_such_option=1)


@pytest.mark.few(8)
@cases
def test_first_step_is_the_base(name, options):
    """To the bit: the update is a product with a zero, and W is not touched."""
    for kind in bases(options):
        base = TINY_MODELS[kind]()
        before = logits(base)
        assert torch.equal(logits(adapted(name, base, **options)), before)


@pytest.mark.few(5)
@cases
def test_merged_is_unmerged_and_plain_lora(name, options, tmp_path):
    """One trained state in four forms: adapter, merged, taken apart again, stock LoRA."""
    for kind in bases(options):
        base = TINY_MODELS[kind]()
        untouched, fresh = logits(base), copy.deepcopy(base)
        model = moved(adapted(name, base, **options))
        expected = logits(model)
        assert not torch.allclose(expected, untouched, atol=1e-4)
        with model.disable_adapter():
            assert torch.equal(logits(model), untouched)
        export = to_lora(model)
        assert export.error == 0
        model.merge_adapter()
        torch.testing.assert_close(logits(model), expected, atol=MERGED_ABSOLUTE, rtol=0)
        model.unmerge_adapter()
        torch.testing.assert_close(logits(model), expected, atol=MERGED_ABSOLUTE, rtol=0)
        merged = model.merge_and_unload(safe_merge=True)
        torch.testing.assert_close(logits(merged), expected, atol=MERGED_ABSOLUTE, rtol=0)
        assert state(merged).keys() == state(fresh).keys()
        save_lora(export, tmp_path / kind)
        plain = peft.PeftModel.from_pretrained(fresh, tmp_path / kind)
        assert plain.peft_config["default"].peft_type == peft.PeftType.LORA
        torch.testing.assert_close(logits(plain), expected, atol=MERGED_ABSOLUTE, rtol=0)


@pytest.mark.few(9)
@cases
def test_only_declared_numbers_move(name, options):
    model = adapted(name, **options)
    declared = {
        f"{place}.{name}_params.default.{own}"
        for place, layer in spectral_layers(model)
        for own in layer._params["default"]
    }
    assert set(trained(model)) == declared
    before = state(model)
    loss = model(input_ids=tiny_tokens(), labels=tiny_tokens()).loss
    loss.backward()
    torch.optim.SGD(trained(model).values(), lr=1.0).step()
    after = state(model)
    changed = {key for key in after if not torch.equal(before[key], after[key])}
    assert changed
    assert changed <= declared


@pytest.mark.few(6)
@cases
def test_reload_is_equal_to_the_bit(name, options, tmp_path):
    model = moved(adapted(name, **options))
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["peft_type"] == name.upper()
    again = peft.PeftModel.from_pretrained(TINY_MODELS["llama"](), tmp_path)
    assert torch.equal(logits(again), logits(model))
    assert not trained(again)


@names
def test_reload_without_memory_for_zeros_and_to_train_on(name, tmp_path):
    model = moved(adapted(name))
    model.save_pretrained(tmp_path)
    lean = peft.PeftModel.from_pretrained(
        TINY_MODELS["llama"](), tmp_path, low_cpu_mem_usage=True, is_trainable=True
    )
    assert torch.equal(logits(lean.eval()), logits(model))
    assert trained(lean).keys() == trained(model).keys()


@pytest.mark.few(3)
@names
def test_stored_directions_need_no_decomposition(name, tmp_path, monkeypatch):
    model = moved(adapted(name, store_directions=True))
    model.save_pretrained(tmp_path)
    if name != "soka":  # whose rank is chosen by the decomposition
        monkeypatch.setattr(torch.linalg, "svd", None)
    again = peft.PeftModel.from_pretrained(TINY_MODELS["llama"](), tmp_path)
    assert torch.equal(logits(again), logits(model))


@pytest.mark.few(3)
@names
def test_two_adapters_on_one_base(name):
    model = moved(adapted(name))
    first = logits(model)
    model.add_adapter("second", config(name, model.get_base_model()))
    assert torch.equal(logits(model), first)
    model.set_adapter("second")
    moved(model, seed=1)
    assert not torch.equal(logits(model), first)
    model.set_adapter("default")
    assert torch.equal(logits(model), first)
    model.delete_adapter("second")
    assert torch.equal(logits(model), first)


@pytest.mark.few(3)
@names
def test_half_precision_base(name):
    """The adapter is in float32 beside it, and the first step is the base to the bit."""
    base = TINY_MODELS["llama"]().bfloat16()
    before = logits(base)
    made = config(name, TINY_MODELS["llama"]())
    model = peft.get_peft_model(base, made).eval()
    assert {p.dtype for p in trained(model).values()} == {torch.float32}
    assert torch.equal(logits(model), before)
    moved(model)
    assert torch.isfinite(logits(model)).all()
    assert logits(model.merge_and_unload()).isfinite().all()


@pytest.mark.few(5)
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for row, name in enumerate(NAMES)
        for kind in sorted({"lowrank", "pivoted", KINDS[row % len(KINDS)]})
    ],
)
def test_factored_base_keeps_ranks_and_bytes(name, kind):
    base = small(kind)
    ranks = {n: m.rank for n, m in base.named_modules() if isinstance(m, CompactLinear)}
    shapes = {n: (t.shape, t.dtype) for n, t in base.state_dict().items()}
    before = logits(base)
    model = adapted(name, base)
    assert torch.equal(logits(model), before)
    moved(model)
    expected = logits(model)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged), expected, atol=PRODUCT_ABSOLUTE, rtol=0)
    assert {n: (t.shape, t.dtype) for n, t in merged.state_dict().items()} == shapes
    found = {n: m.rank for n, m in merged.named_modules() if isinstance(m, CompactLinear)}
    assert found == ranks


def quantized() -> nn.Module:
    """A base whose factors are codes of four bits."""
    model = small("lowrank")
    quantize_all(model, QUANTIZED_BASES["nf4"])
    return model


@pytest.mark.few(2)
@names
def test_quantized_base_keeps_all_promises(name, tmp_path):
    """Identity at first, only the adapter moves, equal reload, merged beside the codes."""
    base, options = quantized(), {"decomposition": "svd"} if name == "obd" else {}
    before, held = logits(base), codes(base)
    model = adapted(name, base, **options)
    assert torch.equal(logits(model), before)
    kept = state(model)
    model(input_ids=tiny_tokens(), labels=tiny_tokens()).loss.backward()
    torch.optim.SGD(trained(model).values(), lr=1.0).step()
    after = state(model)
    moved_keys = {key for key in after if not torch.equal(kept[key], after[key])}
    assert moved_keys
    assert all(f"{name}_params" in key for key in moved_keys)
    expected = logits(moved(model))
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(quantized(), tmp_path)
    assert torch.equal(logits(again), expected)
    with model.disable_adapter():
        assert torch.equal(logits(model), before)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged), expected, atol=PRODUCT_ABSOLUTE, rtol=0)
    own = codes(merged)
    assert all(torch.equal(own[key], value) for key, value in held.items())


@names
def test_rank_deficient_and_zero_weights(name):
    base = TINY_MODELS["llama"]()
    layers = base.model.layers
    with torch.no_grad():
        layers[0].self_attn.q_proj.weight.zero_()
        layers[0].mlp.up_proj.weight[5:] = 0
    made = config(name, TINY_MODELS["llama"]())
    model = peft.get_peft_model(base, made).eval()
    assert logits(model).isfinite().all()
    moved(model)
    loss = model(input_ids=tiny_tokens(), labels=tiny_tokens()).loss
    loss.backward()
    assert all(p.grad.isfinite().all() for p in trained(model).values())


@pytest.mark.few(3)
@names
def test_truncated_export_states_its_error(name, tmp_path):
    model = moved(adapted(name))
    exact, cut = to_lora(model), to_lora(model, rank=1)
    assert cut.config.r == 1
    assert cut.config.lora_alpha == 1
    off = total = 0.0
    for key in [key for key in exact.state if key.endswith("lora_A.weight")]:
        other = key.replace("lora_A", "lora_B")
        whole = exact.state[other] @ exact.state[key]
        off += float((cut.state[other] @ cut.state[key] - whole).square().sum())
        total += float(whole.square().sum())
    assert cut.error == pytest.approx((off / total) ** 0.5, rel=1e-3, abs=1e-6)
    save_lora(cut, tmp_path / "out")
    peft.PeftModel.from_pretrained(TINY_MODELS["llama"](), tmp_path / "out")


@names
def test_export_is_what_servers_take(name):
    written = to_lora(moved(adapted(name))).config.to_dict()
    assert written["r"] == written["lora_alpha"]
    assert written["init_lora_weights"] is True
    assert not written["rank_pattern"]
    assert not written["alpha_pattern"]
    assert written["bias"] == "none"
    assert not written["use_dora"]
    assert not written["use_rslora"]
    assert written["modules_to_save"] is None


@names
def test_peft_converts_it_too(name):
    model = moved(adapted(name, target_modules=["q_proj", "down_proj"]))
    expected = logits(model)
    made, tensors = peft.convert_to_lora(model, rank=32)
    plain = peft.get_peft_model(TINY_MODELS["llama"](), made).eval()
    peft.set_peft_model_state_dict(plain, tensors)
    torch.testing.assert_close(logits(plain), expected, atol=PRODUCT_ABSOLUTE, rtol=0)
