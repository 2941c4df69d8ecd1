"""`spectrim finetune` as other people's scripts call it."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
import torch

from spectrim.checkpoint import load
from tests.tolerances import MERGED_ABSOLUTE


@pytest.fixture
def smaller(compress, tmp_path):
    done = compress("-o", "smaller", "--budget", "0.5", "--recipe", "fast")
    assert done.code == 0, done.err
    return tmp_path / "smaller"


@pytest.mark.few(1)
@pytest.mark.parametrize("lora", [False, True])
def test_a_tuned_checkpoint(cli, shelf, smaller, tmp_path, lora):
    if lora and find_spec("peft") is None:
        pytest.skip("PEFT is not installed (extra spectrim[peft])")
    adapters = ("--lora", 4) if lora else ()
    size = ("--sequences", 16, "--length", 16, "--batch-size", 8, "--epochs", 5)
    rate = ("--learning-rate", 1e-2)
    data = ("--data", shelf / "text.txt")
    done = cli("finetune", smaller, "-o", "tuned", *data, *size, *rate, *adapters, "--json")
    assert done.code == 0, done.err
    assert "deprecated" not in done.err
    entry = json.loads(done.out)
    [(first, last)] = entry["losses"].values()
    assert last < first
    before, after = load(smaller)[0], load(tmp_path / "tuned")[0]
    state = after.state_dict()
    assert {n: t.shape for n, t in before.state_dict().items()} == {
        n: t.shape for n, t in state.items()
    }
    assert any(not torch.equal(t, state[n]) for n, t in before.state_dict().items())
    assert after.config.quantization_config.provenance["refinement"] == [entry]
    card = (tmp_path / "tuned" / "README.md").read_text()
    assert "## Fine-tuned" in card
    assert "## Ranks" in card, "what the compressed model's own card said stays"


def test_a_dense_model_is_refused(cli, shelf):
    asked = ("finetune", shelf / "model", "-o", "tuned", "--data", shelf / "text.txt")
    assert "not compressed" in cli(*asked).failed_with_one_line()


@pytest.mark.few(1)
@pytest.mark.skipif(find_spec("peft") is None, reason="PEFT is not installed (spectrim[peft])")
@pytest.mark.parametrize("base", ["model", "smaller"])
def test_a_spectral_adapter_and_its_lora(cli, shelf, smaller, tmp_path, base):
    from peft import PeftModel, PeftType

    source = shelf / "model" if base == "model" else smaller
    size = ("--sequences", 16, "--length", 16, "--batch-size", 8, "--epochs", 2)
    asked = ("--adapter", "pissa", "--adapter-option", "r=4", "--data", shelf / "text.txt")
    done = cli("finetune", source, "-o", "tuned", *asked, *size, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["name"] == "pissa"
    tuned = load(tmp_path / "tuned", dtype=torch.float32)[0]
    done = cli("export", "tuned", "-o", "plain", "--lora", "--json")
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert (facts["rank"], facts["error"]) == (8, 0.0)
    plain = PeftModel.from_pretrained(load(source, dtype=torch.float32)[0], "plain")
    assert plain.peft_config["default"].peft_type == PeftType.LORA
    ids = torch.arange(2, 18)[None]
    with torch.no_grad():
        expected, found = tuned(ids).logits, plain(ids).logits
    torch.testing.assert_close(found, expected, atol=MERGED_ABSOLUTE, rtol=0)
    short = cli("export", "tuned", "-o", "short", "--lora", "--rank", 2, "--json")
    assert json.loads(short.out)["error"] > 0


@pytest.mark.slow
def test_an_export_without_an_adapter_says_so(cli, smaller):
    asked = ("export", smaller, "-o", "plain")
    assert "no adapter" in cli(*asked, "--lora").failed_with_one_line()
    assert "add --lora" in cli(*asked, "--dense", "--rank", 2).failed_with_one_line()
    assert "choose one" in cli(*asked, "--dense", "--lora").failed_with_one_line()
