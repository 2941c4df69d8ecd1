"""The table of features that do not combine, and the one function that raises from it."""

from __future__ import annotations

import pytest

from spectrim.errors import InputError
from spectrim.pipeline import compatibility
from spectrim.pipeline.compatibility import CHOICES, PARTS, WHY_NOT
from spectrim.pipeline.recipe import (
    CalibrationRecipe,
    CorrectionRecipe,
    ElasticRecipe,
    EmbeddingRecipe,
    ExpertRecipe,
    LatencyRecipe,
    ProbeRecipe,
    QuantizationRecipe,
    Recipe,
    RefinementRecipe,
    SharingRecipe,
    TaskRecipe,
)
from spectrim.pruning.options import PruningOptions

ASKS = {
    "leverage sampling": {"calibration": CalibrationRecipe(sampling="leverage")},
    "task": {"task": TaskRecipe("examples.jsonl")},
    "latency": {"latency": LatencyRecipe()},
    "pruning": {"pruning": PruningOptions()},
    "correction": {"correction": CorrectionRecipe()},
    "quantization": {"quantization": QuantizationRecipe(8, "rtn")},
    "sharing": {"sharing": SharingRecipe("adjacent")},
    "embeddings": {"embeddings": EmbeddingRecipe()},
    "refinement": {"refinement": (RefinementRecipe("distillation"),)},
    "elastic": {"elastic": ElasticRecipe()},
    "experts": {"experts": ExpertRecipe()},
    "an untimed layer type": {"layer": "sparse_dictionary"},
    "a lossy layer type": {"layer": "sparse_dictionary"},
    "layer shared_basis": {"layer": "shared_basis"},
    "no sharing rule": {},
    "a method without metrics": {"method": "afm"},
    "an allocation of weights": {"allocation": "d_rank"},
    "an allocation other than loss_optimal": {"allocation": "d_rank"},
    "packed rows": {"calibration": CalibrationRecipe(rows="packed")},
    "probing through blocks": {"probe": ProbeRecipe(through="block")},
    "factors quantized by statistics": {"quantization": QuantizationRecipe(4, backend="gptq")},
    "a refinement of one size": {"refinement": (RefinementRecipe("finetune"),)},
    "factors quantized across components": {"quantization": QuantizationRecipe(8)},
    "ranks that int4 cannot read": {"quantization": QuantizationRecipe(4), "rank_multiple": 5},
}
"""Changes of the default recipe by the feature that they ask for."""


def test_every_feature_is_tried_here():
    assert set(ASKS) == set(PARTS) | set(CHOICES)


@pytest.mark.parametrize("pair", WHY_NOT, ids=" + ".join)
def test_every_pair_of_the_table_is_refused_with_its_reason(pair):
    ways = [feature for feature in pair if feature not in ASKS]
    changes = {k: v for feature in pair if feature in ASKS for k, v in ASKS[feature].items()}
    with pytest.raises(InputError, match="cannot be combined: ") as raised:
        compatibility.check(Recipe(**changes), *ways)
    first, _, why = str(raised.value).partition(" cannot be combined: ")
    assert why in WHY_NOT.values()
    assert any(feature in first for feature in pair)


def test_pairs_that_are_not_in_the_table_combine():
    parts = list(PARTS)
    for place, one in enumerate(parts):
        for other in parts[place + 1 :]:
            if (one, other) in WHY_NOT or (other, one) in WHY_NOT:
                continue
            recipe = Recipe(**{"layer": "lowrank", **ASKS[one], **ASKS[other]})
            assert PARTS[one](recipe), (one, other)
            assert PARTS[other](recipe), (one, other)


def test_no_pair_stands_twice():
    assert len({frozenset(pair) for pair in WHY_NOT}) == len(WHY_NOT)
    assert [(a, b) for a, b, _ in compatibility.table()] == list(WHY_NOT)
