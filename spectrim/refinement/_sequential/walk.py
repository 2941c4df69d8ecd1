"""One walk over the layers, each rewritten on what the layers before it give by then.

    for each block, for each stage of layers in it (q/k/v, then o, then gate/up, then down):
        sum E[x' x'^T] and E[(x - x') x'^T] over all tokens
        rewrite the stage's layers at their ranks      (`fit.py`)
    pass the hidden states of both models on to the next block

Layers outside the blocks come last, on what the whole models give them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spectrim.errors import CheckpointError, ModelError
from spectrim.linalg.metric import Metric
from spectrim.models.replace import replace_layer
from spectrim.models.targets import decoder_blocks as decoder_blocks
from spectrim.refinement._sequential.fit import (
    Problem,
    TargetMix,
    dense_form,
    fit,
    in_metric,
    out_metric,
    rebuild,
    shift_of,
)
from spectrim.refinement._sequential.inputs import Layers, SequentialInputs
from spectrim.refinement._sequential.layer_inputs import Stage, Sums, record_inputs, stages
from spectrim.runtime.files import read_tensors, write_tensors
from spectrim.training.forward import BlockRunner, Tokens


@dataclass
class PassState:
    """One pass over the layers, and the figures of those before it.

    Attributes:
        label: of the pass.
        layers: the tensors of each rewritten layer, by its name.
        errors: the objective of each layer before and after.
        figures: what the passes before this one have measured, by their labels.
    """

    label: str = ""
    layers: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    errors: dict[str, list[float]] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the state atomically. Raises InputError for a place that is not writable."""
        tensors = {
            f"{name}|{entry}": tensor
            for name, entries in self.layers.items()
            for entry, tensor in entries.items()
        }
        rest = {"walk": self.label, "errors": self.errors, "figures": self.figures}
        write_tensors(path, tensors, rest | {"layers": list(self.layers)})

    @classmethod
    def load(cls, path: Path) -> PassState:
        """Read a saved state. Raises CheckpointError for a file that holds none."""
        tensors, rest = read_tensors(path)
        try:
            layers: dict[str, dict[str, Tensor]] = {name: {} for name in rest["layers"]}
            for key, tensor in tensors.items():
                name, entry = key.split("|")
                layers[name][entry] = tensor
            return cls(rest["walk"], layers, dict(rest["errors"]), dict(rest["figures"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} holds no sequential refinement") from error

    def record(self, name: str, layer: nn.Module) -> None:
        self.layers[name] = {key: tensor.clone() for key, tensor in layer.state_dict().items()}

    def restore(self, model: nn.Module) -> None:
        """Put the recorded layers in place of those of the same kind, shape and rank."""
        for name, tensors in self.layers.items():
            present: Any = model.get_submodule(name)
            shape = present.out_features, present.in_features
            bias = any(key.endswith("bias") for key in tensors)
            layer = type(present).empty(shape, present.rank, bias)
            try:
                layer.load_state_dict(tensors)
            except RuntimeError as error:
                raise CheckpointError(
                    f"the stored {name} does not fit this model: {error}"
                ) from error
            replace_layer(model, name, layer)


class ModelState:
    """One model between two of its blocks, on some of the sequences."""

    def __init__(self, model: PreTrainedModel, tokens: Tokens, chunks: Sequence[Tensor]):
        self.model = model
        self.tokens = tokens
        self.chunks = chunks
        self.blocks = [name for name, _ in decoder_blocks(model)]
        self.hidden: list[Tensor] = []
        if self.blocks:
            self.runner = BlockRunner(model, tokens)
            self.hidden = [self.runner.first_input(rows).float() for rows in chunks]

    def block(self, number: int, chunk: int) -> Tensor:
        """Return the output (B, T, d) of block `number` for the present hidden states."""
        return self.runner.output(number, self.hidden[chunk], self.chunks[chunk])

    def whole(self, chunk: int) -> Any:
        return self.tokens.run(self.model, self.chunks[chunk])

    def advance(self, number: int) -> None:
        for chunk in range(len(self.chunks)):
            self.hidden[chunk] = self.block(number, chunk).float()


Run = Callable[[int], object]
"""Runs a part of a model on one chunk of the sequences."""


class BlockPass:
    """`given` the layers as they stood, `state` those rewritten so far; the layers that are
    `unchanged` keep their factors. Without a mix the original is not run."""

    def __init__(
        self,
        task: SequentialInputs,
        given: Layers,
        state: PassState,
        rows: Tensor,
        mix: TargetMix | None,
    ):
        self.task = task
        self.state = state
        self.given = given
        self.unchanged: list[str] = []
        self.tokens = task.tokens
        self.mix = mix
        self.chunks = rows.split(task.options.batch_size)
        models = [task.compressed, *([] if mix is None else [task.original])]
        self.sides = [ModelState(model, self.tokens, self.chunks) for model in models]

    def rewrite(self) -> Iterator[str]:
        """Rewrite the layers, yielding the name of each."""
        blocks = self.sides[0].blocks
        for number, block in enumerate(blocks):
            inside = [name for name in self.given if name.startswith(block + ".")]
            yield from self._section(inside, [partial(s.block, number) for s in self.sides])
            if number + 1 < len(blocks):
                for side in self.sides:
                    side.advance(number)
        inner = tuple(block + "." for block in blocks)
        outside = [name for name in self.given if not name.startswith(inner)]
        yield from self._section(outside, [side.whole for side in self.sides])

    def _section(self, names: list[str], runs: list[Run]) -> Iterator[str]:
        if all(name in self.state.layers for name in names):
            return
        for stage in stages(self.task.compressed, names, partial(runs[0], 0)):
            yield from self._stage(stage, runs)

    def _stage(self, stage: Stage, runs: list[Run]) -> Iterator[str]:
        """Rewrite the layers of a stage that are not rewritten yet."""
        left = {
            leader: [name for name in readers if name not in self.state.layers]
            for leader, readers in stage.items()
        }
        left = {leader: readers for leader, readers in left.items() if readers}
        sums = self._sums(list(left), runs) if left else {}
        for leader, readers in left.items():
            for name in readers:
                self._rewrite(name, sums[leader])
                yield name

    def _sums(self, leaders: list[str], runs: list[Run]) -> dict[str, Sums]:
        sums = {leader: Sums() for leader in leaders}
        for chunk, rows in enumerate(self.chunks):
            real = self.tokens.real(rows).flatten()
            found = [
                record_inputs(side.model, leaders, partial(run, chunk))
                for side, run in zip(self.sides, runs, strict=True)
            ]
            for leader, own in found[0].items():
                other = found[-1].get(leader, own) if len(found) > 1 else None
                sums[leader].add(own.real(real), None if other is None else other.real(real))
        return sums

    def _rewrite(self, name: str, sums: Sums) -> None:
        layer = self.given[name]
        weight, bias = dense_form(_module(self.task.original, name))
        metric = out_metric(self.task.calibration, name, self.task.options.damping)
        if metric is None or sums.count < layer.in_features:
            self.unchanged.append(name)
        else:
            problem = self._problem(name, weight, sums, metric)
            mix = 0.0 if self.mix is None else self.mix(problem)
            fitted = fit(problem, mix, dense_form(layer)[0])
            self.state.errors[name] = [fitted.before, fitted.after]
            replace_layer(self.task.compressed, name, rebuild(layer, fitted, bias))
        self.state.record(name, self.task.compressed.get_submodule(name))

    def _problem(self, name: str, weight: Tensor, sums: Sums, metric: Metric) -> Problem:
        inputs = in_metric(sums, name, self.task.options.damping)
        return Problem(weight, shift_of(sums), metric, inputs, self.given[name].rank)


def _module(original: PreTrainedModel, name: str) -> torch.nn.Module:
    try:
        return original.get_submodule(name)
    except AttributeError as error:
        raise ModelError(
            f"the original has no layer '{name}'; give the model that was compressed, with "
            "its experts split as `spectrim.prepare` leaves it"
        ) from error
