"""Adapters load in processes that have not made them; plain LoRAs without spectrim."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from spectrim.adapters import save_lora, to_lora
from tests.adapters.building import NAMES, adapted, logits, moved
from tests.checkpoint.test_fresh_process import WITHOUT_SPECTRIM, run
from tests.tiny_models import tiny_llama
from tests.tolerances import MERGED_ABSOLUTE

pytestmark = pytest.mark.slow
REGISTERED = "import spectrim.adapters\nspectrim.adapters.register()\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Directory of the base, and by adapter its logits; adapters and LoRAs stand beside."""
    root = tmp_path_factory.mktemp("made")
    tiny_llama().save_pretrained(root / "base")
    expected = {}
    for name in NAMES:
        model = moved(adapted(name, AutoModelForCausalLM.from_pretrained(root / "base")))
        model.save_pretrained(root / name)
        save_lora(to_lora(model), root / f"{name}-lora")
        expected[name] = logits(model)
    return root, expected


@pytest.mark.parametrize(
    ("prelude", "form"), [(REGISTERED, ""), (WITHOUT_SPECTRIM, "-lora")], ids=["own", "lora"]
)
def test_all_are_loaded_by_transformers(made, prelude, form, tmp_path):
    root, expected = made
    places = {name: root / f"{name}{form}" for name in NAMES}
    found = run(tmp_path, prelude, list(places.values()))
    for name, place in places.items():
        tolerance = 0 if not form else MERGED_ABSOLUTE
        torch.testing.assert_close(
            found[str(place)], expected[name], atol=tolerance, rtol=0, msg=name
        )
