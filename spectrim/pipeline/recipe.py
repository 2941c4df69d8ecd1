"""A recipe: a whole run as one value, which `--recipe FILE` reads and outputs record."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from spectrim.errors import InputError
from spectrim.pipeline.budgets import ElasticRecipe, ExpertRecipe, LatencyRecipe
from spectrim.pipeline.field_errors import explain
from spectrim.pipeline.renamed import FORMAT, current_fields
from spectrim.planning.settings import ExpertSettings, FactorQuantizer, PlanningSettings
from spectrim.pruning.options import PruningOptions

if TYPE_CHECKING:
    from spectrim.calibration import MemoryBudget, Wide

_STRICT = ConfigDict(extra="forbid")
Options = dict[str, Any]


@dataclass(frozen=True, config=_STRICT)
class CalibrationRecipe:
    """Tokens of the statistics, and the storage of the statistics."""

    data: str | None = Field(
        default=None,
        description="Text, .jsonl, .parquet, directory, hf:NAME:SPLIT or python; PATH@SHARE.",
    )
    field: str | None = Field(
        default=None, description="Field that holds the text; for labeled examples TEXT,LABEL."
    )
    sequences: int | None = Field(
        default=None,
        ge=1,
        description="Number of sequences (default: 96 tokens per hidden dimension, 65,536 "
        "to 524,288 in all; 256 rows of a task).",
    )
    length: int | None = Field(
        default=None,
        ge=2,
        description="Tokens per sequence (default: half the context, within 256 to 2048).",
    )
    seed: int | None = 0
    rows: Literal["prefixed", "packed"] = Field(
        default="prefixed",
        description="Start rows as the tokenizer starts a text, or anywhere, as papers do.",
    )
    sampling: Literal["random", "leverage"] = Field(
        default="random",
        description="leverage: inputs from more text, gradients from its rarer sequences.",
    )
    candidates: int = Field(
        default=4, ge=2, description="Leverage sampling: candidates per sequence."
    )
    labels: Literal["data", "sampled"] = Field(
        default="data", description="Labels of the loss: data, or sampled from the model."
    )
    temperature: float = Field(default=1.0, gt=0, description="Temperature of sampling.")
    tokens_per_batch: int | None = Field(
        default=None,
        ge=1,
        description="Default: activations within the model's own size, at most 1024.",
    )
    covariance_bytes: int | None = Field(
        default=None,
        ge=1,
        description="Memory for all statistics; larger covariances use covariance_format.",
    )
    covariance_format: Literal["low_rank", "block_diagonal"] = "low_rank"
    wide_covariances: Literal["as_needed", "full"] = Field(
        default="as_needed",
        description="full: store wide ones whole, for any later recipe.",
    )

    @property
    def memory_budget(self) -> MemoryBudget | None:
        from spectrim.calibration import MemoryBudget

        if self.covariance_bytes is None:
            return None
        return MemoryBudget(self.covariance_bytes, self.covariance_format)


@dataclass(frozen=True, config=_STRICT)
class ProbeRecipe:
    """Forward passes on calibration tokens that correct the predicted curves."""

    per_layer: bool = Field(default=True, description="Each layer alone, on `tokens`.")
    joint: bool = Field(default=True, description="Full-model plans, on `joint_tokens`.")
    tokens: int | None = Field(
        default=None,
        ge=2,
        description="Default, also for joint_tokens: as many as `cost_fraction` allows.",
    )
    joint_tokens: int | None = Field(default=None, ge=2)
    cost_fraction: float = Field(
        default=0.5, gt=0, description="Cost of probing, relative to the calibration's passes."
    )
    through: Literal["auto", "model", "block"] = Field(
        default="auto",
        description="Run the rest of the model behind a changed layer, or its own block with "
        "the rest to second order; auto: the model if that leaves enough tokens.",
    )


@dataclass(frozen=True, config=_STRICT)
class HessianAveragingRecipe:
    """Statistics averaged between the original and the model compressed to `at_budget`."""

    at_budget: float = Field(default=0.7, gt=0, le=1)
    weight: float = Field(default=0.5, ge=0, le=1, description="Weight of the second pass.")
    data_fraction: float = Field(default=0.25, gt=0, le=1, description="Fraction of sequences.")
    below_budget: float = Field(default=0.75, ge=0, description="Used only at smaller budgets.")


@dataclass(frozen=True, config=_STRICT)
class SharingRecipe:
    """Rule for layers of equal input width to share one basis (`shared_basis` layers).

    rule: "adjacent" groups `group_size` neighboring blocks' layers of one name; "same_input"
    layers that read the same tensor; "clustered" layers of one name, at most `group_size`,
    whose joint error at `budget` is at most `max_error` by `error_estimate`; "affinity" and
    "coding_rate" groups under the same bound, the most alike bases first, of layers of one name
    or of the experts of a block. patterns: regular
    expressions on names inside a block; by default the rule decides ("adjacent": layers that
    read a normalized hidden state). accept: "all" groups, or those "cheaper" than separate
    layers in predicted loss at `budget`.
    """

    rule: Literal["none", "adjacent", "same_input", "clustered", "affinity", "coding_rate"] = (
        "none"
    )
    patterns: tuple[str, ...] = ()
    group_size: int = Field(default=2, ge=2)
    max_error: float = Field(default=0.5, ge=0)
    error_estimate: Literal["weyl", "residual", "incremental"] = "incremental"
    accept: Literal["all", "cheaper"] = "cheaper"
    budget: float = Field(default=0.6, gt=0, le=1)


@dataclass(frozen=True, config=_STRICT)
class CorrectionRecipe:
    """A quantizer for every layer, and low-rank corrections of its error.

    With an allocation other than uniform, all corrections together take what `rank` would. A
    budget of bits replaces both: each layer then has those of the `choices` of options that
    lower the loss most per byte, and no correction besides what the quantizer itself stores.
    """

    quantizer: str = Field(default="rtn", description="See `spectrim ls`.")
    quantizer_options: Options = Field(default_factory=dict)
    rank: int = Field(default=16, ge=0, description="Rank of each correction.")
    bytes: int | None = Field(default=None, ge=0, description="Bytes of all corrections.")
    choices: dict[str, tuple[Any, ...]] = Field(
        default_factory=dict,
        description="Values of quantizer options that each layer chooses from.",
    )
    bits_per_weight: float | None = Field(
        default=None, gt=0, description="Budget for all that is stored, in bits per weight."
    )

    def __post_init__(self) -> None:
        if self.choices and self.bits_per_weight is None:
            raise ValueError("choices need a budget, bits_per_weight (--budget-bits)")
        if self.bits_per_weight is not None and self.bytes is not None:
            raise ValueError("give bits_per_weight or bytes, not both")


@dataclass(frozen=True, config=_STRICT)
class QuantizationRecipe:
    """Factors and dense layers in fewer bits; a budget then counts bytes in `save_dtype`."""

    bits: Literal[8, 4] = 8
    backend: str = Field(default="torchao", description="torchao; rtn and gptq take any rank.")
    group_size: int = Field(
        default=32, description="Weights per scale; torchao uses a whole row at 8 bits."
    )

    @property
    def options(self) -> Options:
        return {"bits": self.bits, "group": self.group_size}

    @property
    def multiple(self) -> int:
        """Return what ranks must be multiples of."""
        return self.group_size if self.backend == "torchao" and self.bits == 4 else 1


@dataclass(frozen=True, config=_STRICT)
class RefinementRecipe:
    """One refinement, trained on the calibration text.

    It reads `sequences` or as many as `tokens` need (default: as many as the calibration), the
    calibration's own first. A shorter text is read whole.
    """

    name: str
    options: Options = Field(default_factory=dict)
    sequences: int | None = Field(default=None, ge=1)
    tokens: int | None = Field(default=None, ge=1)

    def __post_init__(self) -> None:
        if self.sequences is not None and self.tokens is not None:
            raise ValueError("give sequences or tokens, not both")


@dataclass(frozen=True, config=_STRICT)
class TaskRecipe:
    """Prompts with answers, in place of the calibration text (`spectrim.data.tasks`)."""

    data: str = Field(description="FILE.jsonl, gsm8k:FILE, math:FILE, arithmetic:train:COUNT.")
    prompt_field: str | None = None
    answer_field: str | None = None
    template: str | None = None
    shots: int = 0
    limit: int | None = None
    labels: Literal["answer", "all"] = "answer"
    length: int | None = Field(default=None, ge=2)


@dataclass(frozen=True, config=_STRICT)
class EmbeddingRecipe:
    """The embedding table, and an output embedding tied to it, in two factors."""

    budget: float = Field(default=0.5, gt=0, le=1, description="Fraction of table weights.")
    method: str = "afm"
    options: Options = Field(default_factory=dict)


@dataclass(frozen=True, config=_STRICT)
class Recipe:
    """A compression run: calibration, method, ranks, storage, refinement."""

    method: str = Field(default="obd", description="Decomposition; see `spectrim ls`.")
    method_options: Options = Field(default_factory=dict)
    allocation: str = Field(
        default="loss_optimal", description="Allocation; see `spectrim ls`."
    )
    allocation_options: Options = Field(default_factory=dict)
    layer: str = Field(default="pivoted", description="Layer type; see `spectrim ls`.")
    layer_options: Options = Field(default_factory=dict)
    budget: float = Field(
        default=0.8,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="Fraction of the layers' weights to keep (0.8 removes 20%).",
    )
    rank_multiple: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default=1, description="Round ranks to multiples of this; auto: what suits the device."
    )
    include: tuple[str, ...] = Field(
        default=(), description="Only layers whose name matches this regular expression."
    )
    exclude: tuple[str, ...] = Field(
        default=(), description="Skip layers whose name matches this regular expression."
    )
    calibration: CalibrationRecipe = Field(default_factory=CalibrationRecipe)
    hessian_averaging: HessianAveragingRecipe = Field(default_factory=HessianAveragingRecipe)
    probe: ProbeRecipe = Field(default_factory=ProbeRecipe)
    sharing: SharingRecipe = Field(default_factory=SharingRecipe)
    task: TaskRecipe | None = None
    pruning: PruningOptions | None = None
    correction: CorrectionRecipe | None = None
    embeddings: EmbeddingRecipe | None = None
    quantization: QuantizationRecipe | None = None
    latency: LatencyRecipe | None = None
    elastic: ElasticRecipe | None = None
    experts: ExpertRecipe | None = None
    refinement: tuple[RefinementRecipe, ...] = Field(
        default=(), description="Refinements to run after replacing layers, in order."
    )
    save_dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        default=None, description="Dtype to save in (default: the original's)."
    )

    def __post_init__(self) -> None:
        from spectrim.pipeline import compatibility  # registries load with the first recipe

        compatibility.check_names(self)
        compatibility.check(self)

    @property
    def planning(self) -> PlanningSettings:
        """Return the settings that choose ranks."""
        quantizer, quantization = None, self.quantization
        if quantization is not None:
            dtype = self.save_dtype or "float32"
            quantizer = FactorQuantizer(quantization.backend, quantization.options, dtype)
        return PlanningSettings(
            self.budget,
            self.allocation,
            self.allocation_options,
            self.layer,
            self.layer_options,
            self.rank_multiple,
            quantizer,
            None if self.latency is None else self.latency.budget,
            self.expert_settings,
        )

    @property
    def expert_settings(self) -> ExpertSettings | None:
        """Return how experts are removed, None where they all stay."""
        if (experts := self.experts) is None:
            return None
        from spectrim.pruning.experts import EXPERT_ORDERS

        uniform = experts.uniform
        if uniform is None:
            uniform = EXPERT_ORDERS.get(experts.order).UNIFORM
        return ExpertSettings(uniform, experts.cut_ranks)

    @property
    def statistics(self) -> tuple[str, ...]:
        """Return the statistics to collect."""
        from spectrim.pipeline.requirements import statistics_for

        return statistics_for(self)

    @property
    def wide(self) -> Wide:
        """Return how covariances of the wider side of a layer are stored."""
        from spectrim.pipeline.requirements import wide_covariances_for

        return wide_covariances_for(self)

    @property
    def averages_hessian(self) -> bool:
        """Return whether statistics are averaged toward the compressed model."""
        from spectrim.pipeline.requirements import averages_hessian

        return averages_hessian(self)

    @property
    def sharing_key(self) -> Options:
        """Return all that groups of layers on one basis depend on; empty without sharing."""
        if self.sharing.rule == "none":
            return {}
        return {"sharing": [asdict(self.sharing), self.layer, self.rank_multiple]}

    def at_budget(self, budget: float) -> Recipe:
        """Return the recipe for a plan of another budget from this recipe's own statistics."""
        other = self.with_changes(budget=budget)
        if other.averages_hessian == self.averages_hessian:
            return other
        always, never = 2.0, 0.0
        below = always if self.averages_hessian else never
        return other.with_changes(
            hessian_averaging=replace(self.hessian_averaging, below_budget=below)
        )

    def with_changes(self, **changes: Any) -> Recipe:
        """Return the recipe with top-level fields replaced. Raises InputError."""
        try:
            return replace(self, **changes)
        except ValidationError as error:
            raise InputError(explain("options", error, Recipe)) from error

    def to_dict(self) -> Options:
        return TypeAdapter(Recipe).dump_python(self, mode="json")

    def to_yaml(self) -> str:
        return yaml.safe_dump({"format": FORMAT} | self.to_dict(), sort_keys=False)


def recipe_from(values: Any, source: str) -> Recipe:
    """Return a recipe from plain values. Raises InputError that names each wrong field."""
    if not isinstance(values, dict):
        raise InputError(f"{source} must hold a mapping of recipe fields")
    fields = current_fields(values, source)
    try:
        return TypeAdapter(Recipe).validate_python(fields)
    except ValidationError as error:
        raise InputError(explain(source, error, Recipe)) from error


__all__ = [
    "CalibrationRecipe",
    "CorrectionRecipe",
    "ElasticRecipe",
    "EmbeddingRecipe",
    "ExpertRecipe",
    "HessianAveragingRecipe",
    "LatencyRecipe",
    "ProbeRecipe",
    "QuantizationRecipe",
    "Recipe",
    "RefinementRecipe",
    "SharingRecipe",
    "TaskRecipe",
    "recipe_from",
]
