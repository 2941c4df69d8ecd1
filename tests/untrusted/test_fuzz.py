"""Damaged and crafted plans, recipes and checkpoint configs: read, or refused with a message.

Twelve thousand seeded mutations of valid files. Anything that is no SpectrimError fails, and so
does an absurd value that gets through a reader.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spectrim.checkpoint.config import SpectrimConfig
from spectrim.checkpoint.validation import weight_files
from spectrim.errors import SpectrimError
from spectrim.pipeline.presets import PRESETS, load_recipe
from spectrim.planning import LayerPlan, Plan, load_plan

CASES = 4000
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 10**9, -(10**18), 2**63, 10**40, 0.5, -0.0, 1e308, -1e-320,
    "", " ", "0", "-1", "null", "../../etc/passwd", "/etc/passwd", "a" * 5000, "\x00", "\ud800",
    "model.layers.0", "__class__", "{}", "%s%n", "é", "\u202e", [], {}, [[]], {"": None},
    [1, [2, [3]]], {"rank": -5}, {"kind": "pivoted", "rank": 10**12},
    float("inf"), float("nan"),
)  # fmt: skip
ODD_KEYS = ("", "rank", "shape", "layers", "__init__", "../x", "method", "0", "a.b", "kind")
PLAN = Plan(
    "obd",
    "loss_optimal",
    "pivoted",
    0.8,
    0.79,
    0.01,
    {
        "model.layers.0.mlp.up_proj": LayerPlan((64, 32), 12, 0.1),
        "model.layers.0.mlp.down_proj": LayerPlan((32, 64)),
        "a+b": LayerPlan((96, 32), 8, 0.2, {"a": 64, "b": 32}),
    },
    {"data": {"source": "text"}},
)
CONFIG = {
    "quant_method": "spectrim",
    "version": 1,
    "layers": {
        "model.layers.0.mlp.up_proj": {"kind": "pivoted", "rank": 8},
        "model.layers.0.self_attn.q_proj": {"kind": "shared_basis", "rank": 4},
        "model.layers.0.self_attn.k_proj": {
            "kind": "shared_basis",
            "rank": 4,
            "basis": "model.layers.0.self_attn.q_proj",
        },
    },
    "split_experts": ["model.layers.0.mlp.experts"],
    "untied": False,
    "embeddings": {"name": "model.embed_tokens", "rank": 8, "mean": True, "head": None},
    "provenance": {"plan": {"method": "obd"}},
}


class Mutator:
    """Changes to a tree of plain values, or to its text."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)

    def tree(self, value: Any) -> Any:
        result = copy.deepcopy(value)
        for _ in range(self.random.choice((1, 1, 1, 2, 5))):
            result = self._changed(result)
        return result

    def text(self, value: str) -> str:
        characters = list(value)
        for _ in range(self.random.choice((1, 2, 8))):
            place = self.random.randrange(len(characters) + 1)
            action = self.random.randrange(4)
            if action == 0:
                characters[place:place] = self.random.choice(
                    ("{", "]", ":", '"', "\t", "&a *a")
                )
            elif action == 1:
                del characters[place : place + self.random.choice((1, 3, 40))]
            elif action == 2:
                characters[place:place] = characters[place : place + 30]
            else:
                characters[place : place + 1] = chr(self.random.randrange(1, 0x2FFF))
        return "".join(characters)

    def _changed(self, value: Any) -> Any:
        if not isinstance(value, dict | list) or not value or self.random.random() < 0.1:
            return copy.deepcopy(self.random.choice(ODD_VALUES))
        keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
        key, action = self.random.choice(keys), self.random.randrange(8)
        if action == 0:
            del value[key]
        elif action == 1 and isinstance(value, dict):
            value[self.random.choice(ODD_KEYS)] = copy.deepcopy(value[key])
        elif action == 2 and isinstance(value, list):
            value.append(copy.deepcopy(value[key]))
        else:
            value[key] = self._changed(value[key])
        return value


def survives(read: Callable[[], object], case: str) -> bool:
    """True when it was read, False when it was refused with a message of one line or more."""
    try:
        read()
    except SpectrimError as error:
        if not str(error).strip():
            pytest.fail(f"no message for {case[:2000]}")
        return False
    except Exception as error:
        pytest.fail(f"{type(error).__name__}: {error} for {case[:2000]}")
    return True


def as_text(value: Any) -> str:
    return json.dumps(value)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("valid", "load"),
    [(PLAN.to_dict(), load_plan), (PRESETS["bsi"].to_dict(), lambda p: load_recipe(str(p)))],
    ids=["plan", "recipe"],
)
def test_files(tmp_path, valid, load):
    mutator, read = Mutator(1), 0
    assert survives(lambda: load(write(tmp_path / "valid.json", as_text(valid))), "valid")
    for number in range(CASES):
        if number % 4 == 3:
            text, name = mutator.text(as_text(valid)), "case.json"
        else:
            text, name = as_text(mutator.tree(valid)), "case.json"
        if number % 16 == 0:
            name = "case.yaml"
        path = write(tmp_path / name, text)
        read += survives(lambda path=path: load(path), text)
    assert 0 < read < CASES, "some are harmless, most are refused"


def test_configs():
    mutator, read = Mutator(2), 0
    assert survives(lambda: SpectrimConfig(**CONFIG), "valid")
    for _ in range(CASES):
        values = mutator.tree(CONFIG)
        if not isinstance(values, dict):
            continue
        kept: list[SpectrimConfig] = []
        case = repr(values)
        read += survives(lambda v=values, k=kept: k.append(SpectrimConfig(**v)), case)
        for config in kept:
            assert all(entry["rank"] > 0 for entry in config.layers.values()), case
            assert all(".." not in name and "/" not in name for name in config.layers), case
    assert 0 < read < CASES


@pytest.mark.slow
def test_indices(tmp_path):
    mutator = Mutator(3)
    valid = {"metadata": {"total_size": 5}, "weight_map": {"a": "m-1.safetensors", "b": "m-2"}}
    for number in range(CASES // 4):
        value = mutator.tree(valid)
        text = as_text(value) if number % 4 else mutator.text(as_text(valid))
        write(tmp_path / "model.safetensors.index.json", text)
        found: list[Path] = []
        survives(lambda f=found: f.extend(weight_files(tmp_path)), text)
        assert all(path.parent == tmp_path for path in found), text


def test_a_plan_of_absurd_size_is_refused(tmp_path):
    path = tmp_path / "plan.json"
    with path.open("wb") as file:
        file.truncate(10**9)
    with pytest.raises(SpectrimError, match="larger than"):
        load_plan(path)


def test_a_yaml_bomb_is_refused(tmp_path):
    """Nested aliases that would unfold to 10^9 entries are never unfolded."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(SpectrimError):
        load_plan(write(tmp_path / "bomb.yaml", "\n".join(lines)))
    with pytest.raises(SpectrimError):
        load_recipe(str(write(tmp_path / "recipe.yaml", "\n".join(lines))))
