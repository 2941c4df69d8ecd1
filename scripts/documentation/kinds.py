"""The kinds of things that have a name in spectrim, and how each is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

from spectrim.pipeline.catalog import REGISTRIES
from spectrim.registry import Registry


@dataclass(frozen=True)
class Kind:
    """command: what asks for the entry {name}; with {form}, for what the user types. setting:
    what sets its option {option} to {value}, after the command. measured: whether
    docs/results.md has tables of it."""

    title: str
    command: str = ""
    setting: str = ""
    measured: bool = False


KINDS = {
    "methods": Kind(
        "Decompositions",
        "spectrim compress MODEL -o OUT --data TEXT --method {name}",
        "--set method_options.{option}={value}",
        True,
    ),
    "allocations": Kind(
        "Allocations",
        "spectrim compress MODEL -o OUT --data TEXT --allocation {name}",
        "--set allocation_options.{option}={value}",
        True,
    ),
    "layers": Kind(
        "Layer types",
        "spectrim compress MODEL -o OUT --data TEXT --layer {name}",
        "--set layer_options.{option}={value}",
        True,
    ),
    "embeddings": Kind(
        "Embedding tables",
        "spectrim compress MODEL -o OUT --data TEXT --set embeddings.method={name}",
        "--set embeddings.options.{option}={value}",
        True,
    ),
    "quantizers": Kind(
        "Quantizers",
        "spectrim quantize MODEL -o OUT --data TEXT --quantizer {name} --rank 16",
        "--quantizer-option {option}={value}",
        True,
    ),
    "refinements": Kind(
        "Refinements",
        "spectrim compress MODEL -o OUT --data TEXT --refine {name}",
        "--set 'refinement=[{{name: {name}, options: {{{option}: {value}}}}}]'",
        True,
    ),
    "pretraining": Kind(
        "Training from scratch",
        "spectrim train MODEL -o OUT --data TEXT --method {name}",
        "--method-option {option}={value}",
    ),
    "optimizers": Kind(
        "Optimizers",
        "spectrim train MODEL -o OUT --data TEXT --optimizer {name}",
    ),
    "adapters": Kind(
        "Adapters",
        "spectrim finetune MODEL -o OUT --data TEXT --adapter {name}",
        "--adapter-option {option}={value}",
    ),
    "importance": Kind(
        "Importance of bases",
        "spectrim compress MODEL -o OUT --recipe task --task TASK.jsonl "
        "--set pruning.importance={name}",
        "--set pruning.importance_options.{option}={value}",
        True,
    ),
    "experts": Kind(
        "Orders of experts",
        "spectrim compress MODEL -o OUT --data TEXT --experts {name}",
        "--set experts.order_options.{option}={value}",
    ),
    "tasks": Kind(
        "Task formats",
        "spectrim compress MODEL -o OUT --recipe task --task TASK",
    ),
    "sources": Kind("Sources of text", "spectrim compress MODEL -o OUT --data TEXT"),
    "statistics": Kind("Statistics"),
    "evaluators": Kind("Evaluators"),
    "modules": Kind("Modules and losses"),
    "estimators": Kind("Estimators"),
}


@dataclass(frozen=True)
class Entry:
    kind: str
    name: str
    module: ModuleType
    registry: Registry

    @property
    def page(self) -> str:
        return f"methods/{self.kind}/{self.name}.md"

    @property
    def needs(self) -> tuple[str, ...]:
        """Its statistics."""
        return tuple(getattr(self.module, "REQUIRES", ()))


def entries(kind: str) -> Iterator[Entry]:
    """All that the registry of a kind holds, in its order."""
    registry = REGISTRIES[kind]
    for name in registry.names():
        yield Entry(kind, name, registry.get(name), registry)
