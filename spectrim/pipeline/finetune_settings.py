"""The settings of `finetune`, which are also the options of the command."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from spectrim.adapters import ADAPTERS
from spectrim.errors import InputError
from spectrim.pipeline.recipe import QuantizationRecipe

QUANTIZED_BASES = {
    "int4": QuantizationRecipe(4, "rtn", 32),
    "nf4": QuantizationRecipe(4, "nf4", 64),
}
"""Kernels through which gradients pass to the input; torchao's int4 is none of them."""


COMMON = ("penalty", "store_directions")
"""Options that every spectral adapter has."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class FinetuneSettings:
    """Text (`data`, every token counts) or examples (`task`, the answers' tokens count)."""

    data: str | None = Field(
        default=None, description="Text: FILE.txt, .jsonl, .parquet, hf:NAME:SPLIT, python."
    )
    task: str | None = Field(
        default=None, description="Examples whose answers are learned: FILE.jsonl."
    )
    field: str | None = Field(default=None, description="Field that holds the text.")
    sequences: int | None = Field(default=None, description="Rows to train on.")
    length: int | None = Field(default=None, description="Tokens per row at most.")
    lora: int | None = Field(
        default=None,
        description="Rank of LoRA adapters, merged at the end (default: train the factors).",
    )
    adapter: str | None = Field(
        default=None, description="Spectral adapter (`spectrim ls`), for any model."
    )
    adapter_option: tuple[str, ...] | None = Field(
        default=None, description="Option of the adapter, NAME=VALUE; repeat for several."
    )
    quantize_base: Literal["int4", "nf4"] | None = Field(
        default=None, description="Quantize the layers first and keep the adapters separate."
    )
    epochs: int = Field(default=3, description="Passes over the rows.")
    steps: int | None = Field(default=None, description="Optimizer steps, instead of epochs.")
    batch_size: int = Field(default=32, description="Rows per optimizer step.")
    learning_rate: float | None = Field(
        default=None,
        description="Learning rate (default: 5e-4 for factors, 2e-3 for LoRA, the adapter's "
        "own).",
    )
    seed: int = Field(
        default=0, description="Random seed for row order and adapter initialization."
    )

    def __post_init__(self) -> None:
        if (self.data is None) == (self.task is None):
            raise InputError("give one of data (text) and task (examples with answers)")
        if self.lora is not None and self.adapter is not None:
            raise InputError("lora and adapter are two kinds of adapters; give one of them")
        if self.adapter_option and self.adapter is None:
            raise InputError("adapter_option needs an adapter: --adapter NAME (`spectrim ls`)")
        if self.quantize_base is not None and self.lora is None and self.adapter is None:
            raise InputError(
                "quantized factors are not trained; give adapters a rank: --lora 8"
            )
        if self.adapter is not None:
            ADAPTERS.options(self.adapter, self.method_options)

    @property
    def adapter_options(self) -> dict[str, Any]:
        """Return the given fields of the adapter's configuration. Raises InputError."""
        return dict(map(_assigned, self.adapter_option or ()))

    @property
    def method_options(self) -> dict[str, Any]:
        """Return those of the method itself; the others are common to all adapters."""
        given = self.adapter_options
        return {name: value for name, value in given.items() if name not in COMMON}

    @property
    def training(self) -> dict[str, Any]:
        given = {
            "epochs": self.epochs,
            "steps": self.steps,
            "batch_size": self.batch_size,
            "seed": self.seed,
        }
        rate = self.learning_rate
        return given if rate is None else given | {"learning_rate": rate}


def _assigned(text: str) -> tuple[str, Any]:
    import yaml

    name, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"adapter option {text}: expected NAME=VALUE")
    try:
        return name.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InputError(f"adapter option {name}: '{value}' is not a value") from error
