"""The settings of `train`, which are also the options of the command."""

from __future__ import annotations

import inspect
from typing import Any

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from spectrim.errors import InputError


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class TrainSettings:
    """Training from scratch: text, method, optimizer, steps and rates."""

    data: str | None = Field(
        default=None, description="Text: FILE.txt, .jsonl, .parquet, hf:NAME:SPLIT, python."
    )
    field: str | None = Field(default=None, description="Field that holds the text.")
    tokenizer: str | None = Field(
        default=None, description="Directory or hub name (default: the config's)."
    )
    method: str = Field(
        default="full", description="full, lowrank, sltrain, sst or maestro; see `spectrim ls`."
    )
    method_option: tuple[str, ...] | None = Field(
        default=None, description="Option of the method, NAME=VALUE; repeat for several."
    )
    optimizer: str = Field(default="adamw", description="Optimizer; see `spectrim ls`.")
    optimizer_option: tuple[str, ...] | None = Field(
        default=None, description="Option of the optimizer, NAME=VALUE; repeat for several."
    )
    steps: int = Field(default=1000, ge=1, description="Optimizer steps.")
    batch_size: int = Field(default=8, ge=1, description="Sequences per optimizer step.")
    sequences: int | None = Field(
        default=None, ge=1, description="Number of sequences (default: each is used once)."
    )
    length: int | None = Field(default=None, ge=2, description="Tokens per sequence.")
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        description="Learning rate of the matrices (default: the optimizer's own).",
    )
    rest_learning_rate: float = Field(
        default=3e-3,
        gt=0,
        description="Learning rate of embeddings, output layer and norms (AdamW).",
    )
    warmup_ratio: float = Field(
        default=0.05, ge=0, lt=1, description="Fraction of the steps in which the rate rises."
    )
    seed: int = Field(
        default=0, description="Random seed for the initial weights and the row order."
    )

    @property
    def rate(self) -> float:
        """Return the matrices' learning rate. Raises UnknownNameError."""
        from spectrim.optim import OPTIMIZERS

        if self.learning_rate is not None:
            return self.learning_rate
        given = inspect.signature(OPTIMIZERS.get(self.optimizer).OPTIMIZER).parameters
        return float(given["lr"].default)


def assigned(assignments: tuple[str, ...] | None, option: str) -> dict[str, Any]:
    """Return NAME=VALUE texts as values. Raises InputError."""
    import yaml

    found: dict[str, Any] = {}
    for assignment in assignments or ():
        name, equals, text = assignment.partition("=")
        if not equals:
            raise InputError(f"{option} {assignment}: expected NAME=VALUE")
        try:
            found[name] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"{option} {name}: '{text}' is not a value") from error
        if isinstance(found[name], str):
            found[name] = _number(found[name])
    return found


def _number(text: str) -> Any:
    """Return 1e-3 as a number, which YAML takes for a text."""
    try:
        return float(text)
    except ValueError:
        return text
