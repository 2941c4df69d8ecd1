"""Read the entries of a checkpoint's config, checked for what vLLM can hold.

    {"model.layers.0.self_attn.q_proj": {"kind": "lowrank", "rank": 12}, ...}

vLLM fuses projections that read the same input (`qkv_proj`, `gate_up_proj`); its
`packed_modules_mapping` says which, so that each keeps its own kind and rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spectrim_vllm.elastic import Stored, chosen_ranks

FORMAT_VERSION = 1
KINDS = ("lowrank", "pivoted", "shared_basis", "sparse_dictionary", "sparse_plus_lowrank")


@dataclass(frozen=True)
class Entry:
    """A factored projection; `basis` is the layer whose `right` it uses, None for its own.

    Of a checkpoint with several sizes, `stored` is what it holds; rank 0 is then dense.
    """

    kind: str
    rank: int
    basis: str | None = None
    stored: Stored | None = None


def read_entries(settings: Mapping[str, Any]) -> dict[str, Entry]:
    """Return the factored layers of a `quantization_config` by name.

    Raises:
        ValueError: A newer format, or a module that vLLM cannot hold (embeddings, experts).
    """
    version = settings.get("version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise ValueError(
            f"checkpoint format {version!r}, this plug-in reads {FORMAT_VERSION}; "
            "upgrade spectrim"
        )
    for field, what in (
        ("embeddings", "a factored embedding table"),
        ("split_experts", "experts"),
    ):
        if settings.get(field):
            raise ValueError(f"vLLM cannot hold {what} of this checkpoint; {_ADVICE}")
    if (elastic := settings.get("elastic")) is not None:
        return {
            name: Entry("lowrank", rank, stored=stored)
            for name, (rank, stored) in chosen_ranks(elastic).items()
        }
    return {name: _entry(name, values) for name, values in settings.get("layers", {}).items()}


def projections(
    prefix: str, packed: Mapping[str, Sequence[str]], partitions: int | None = None
) -> list[str]:
    """Return the names of the projections fused in vLLM's layer `prefix`, in its order.

    Raises:
        ValueError: There is not one for each of its `partitions`, nor one for all.
    """
    parent, _, last = prefix.rpartition(".")
    names = [f"{parent}.{name}" if parent else name for name in packed.get(last, [last])]
    if partitions is not None and len(names) not in (1, partitions):
        raise ValueError(
            f"{prefix} fuses {len(names)} projections into {partitions} parts, expected one "
            f"each; {_ADVICE}"
        )
    return names


_ADVICE = "serve what `spectrim export --dense` writes"


def _entry(name: str, values: Any) -> Entry:
    kind = values.get("kind") if isinstance(values, Mapping) else None
    if kind not in KINDS:
        raise ValueError(
            f"layer {name} is of kind {kind!r}, vLLM can hold {', '.join(KINDS)}; {_ADVICE}"
        )
    rank = values.get("rank")
    if not isinstance(rank, int) or rank < 1:
        raise ValueError(
            f"layer {name} has rank {rank!r}, expected a whole number of 1 or more"
        )
    if values.get("bias"):
        raise ValueError(
            f"layer {name} has a bias that its architecture does not have, which vLLM cannot "
            "hold; compress with a method that adds none"
        )
    return Entry(kind, rank, values.get("basis"))
