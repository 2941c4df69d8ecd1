"""A recipe is the whole run as one value: what `--recipe FILE` reads and outputs record."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from spectrim.allocation import ALLOCATORS, BY_STORAGE, TIMED, TIMED_ONLY, LatencyRecipe
from spectrim.calibration import MemoryBudget, Wide
from spectrim.decompositions import DECOMPOSITIONS, TABLE_METHODS
from spectrim.errors import InputError
from spectrim.layers import LAYERS
from spectrim.layers.quantized import QUANTIZERS
from spectrim.pipeline.renamed import check_fields
from spectrim.pruning import PruningOptions
from spectrim.refinement import REFINEMENTS, required_statistics

PRICING = ("input_covariance", "gradient_covariance")
"""Statistics that predict what a cut costs in nats."""
_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=_STRICT)
class CalibrationRecipe:
    """Which tokens the statistics come from.

    length None: half the model's context, at least 256 and at most 2048 tokens (never more than
    the context). labels: "data" or "sampled" from the model, at `temperature` (above 1 for a
    model that is sure of its answers). tokens_per_batch None: as many as keep the activations
    below the model's own size (or 256 MiB), at most 1024. covariance_bytes: for all sums;
    covariances that do not fit are kept as covariance_format says (docs/scaling.md). None keeps
    them in full. wide_covariances: a covariance of a layer's wider side is summed as the
    layer's weight sees it where the recipe asks no more of it; "full" keeps it whole, for other
    recipes on the same statistics.
    """

    data: str = "python"
    field: str | None = None
    sequences: int = Field(default=256, ge=1)
    length: int | None = Field(default=None, ge=2)
    seed: int | None = 0
    labels: Literal["data", "sampled"] = "data"
    temperature: float = Field(default=1.0, gt=0)
    tokens_per_batch: int | None = Field(default=None, ge=1)
    covariance_bytes: int | None = Field(default=None, ge=1)
    covariance_format: Literal["low_rank", "block_diagonal"] = "low_rank"
    wide_covariances: Literal["as_needed", "full"] = "as_needed"

    @property
    def memory_budget(self) -> MemoryBudget | None:
        given = self.covariance_bytes
        return None if given is None else MemoryBudget(given, self.covariance_format)


@dataclass(frozen=True, config=_STRICT)
class ProbeRecipe:
    """Forward passes that correct the predicted curves, on calibration tokens.

    per_layer: each layer alone, on `tokens`; joint: whole plans, on `joint_tokens`.
    """

    per_layer: bool = True
    joint: bool = True
    tokens: int = Field(default=2048, ge=2)
    joint_tokens: int = Field(default=16384, ge=2)


@dataclass(frozen=True, config=_STRICT)
class HessianAveragingRecipe:
    """Statistics averaged between the original and the model cut to `at_budget`.

    weight: of the second pass (0 leaves it out); data_fraction: of the sequences it uses. Only
    for recipes whose own budget is less than `below_budget`: a small change stays near the
    original.
    """

    at_budget: float = Field(default=0.7, gt=0, le=1)
    weight: float = Field(default=0.5, ge=0, le=1)
    data_fraction: float = Field(default=0.25, gt=0, le=1)
    below_budget: float = Field(default=0.75, ge=0)


@dataclass(frozen=True, config=_STRICT)
class SharingRecipe:
    """Which layers of equal input width get one basis together (`shared_basis` layers).

    rule: "adjacent" blocks' layers of one name inside the block, in groups of `group_size`;
    "same_input", layers that read the same tensor; "clustered", layers of one name inside their
    blocks, at most `group_size`, whose joint error at `budget` is at most `max_error` by the
    `error_estimate`. patterns: expressions on names inside a block that may share; () leaves it
    to the rule: for "adjacent" all that read a normalized hidden state, else all. accept: "all"
    groups of the rule, or those "cheaper" than apart in predicted loss at `budget`.
    """

    rule: Literal["none", "adjacent", "same_input", "clustered"] = "none"
    patterns: tuple[str, ...] = ()
    group_size: int = Field(default=2, ge=2)
    max_error: float = Field(default=0.5, ge=0)
    error_estimate: Literal["weyl", "residual", "incremental"] = "incremental"
    accept: Literal["all", "cheaper"] = "cheaper"
    budget: float = Field(default=0.6, gt=0, le=1)


@dataclass(frozen=True, config=_STRICT)
class CorrectionRecipe:
    """A compressor for every layer, and low-rank paths for what it loses.

    quantizer: the compressor, with its options. rank: of every path; 0 for none; with another
    allocation than uniform, the paths together take what this rank would take. bytes:
    all paths together, in place of a rank.
    """

    quantizer: str = "rtn"
    quantizer_options: dict[str, Any] = Field(default_factory=dict)
    rank: int = Field(default=16, ge=0)
    bytes: int | None = Field(default=None, ge=0)

    def __post_init__(self) -> None:
        QUANTIZERS.options(self.quantizer, self.quantizer_options)


@dataclass(frozen=True, config=_STRICT)
class QuantizationRecipe:
    """Factors, and the layers that stay dense, in fewer bits. A budget counts the bytes then:
    fraction of what the layers take dense in `save_dtype`.

    backend: the compressor (torchao; rtn for any rank); group_size: columns per scale, at 8
    bits of torchao a whole row.
    """

    bits: Literal[8, 4] = 8
    backend: str = "torchao"
    group_size: int = 32

    def __post_init__(self) -> None:
        QUANTIZERS.options(self.backend, self.options)

    @property
    def options(self) -> dict[str, Any]:
        return {"bits": self.bits, "group": self.group_size}

    @property
    def multiple(self) -> int:
        """What ranks have to be multiples of."""
        return self.group_size if self.backend == "torchao" and self.bits == 4 else 1


@dataclass(frozen=True, config=_STRICT)
class RefinementRecipe:
    """One refinement with its options, trained on the calibration's text.

    sequences: how many of it, the calibration's own first; tokens: the same counted in
    tokens; neither: as many as the calibration has. A shorter text is taken whole.
    """

    name: str
    options: dict[str, Any] = Field(default_factory=dict)
    sequences: int | None = Field(default=None, ge=1)
    tokens: int | None = Field(default=None, ge=1)

    def __post_init__(self) -> None:
        if self.sequences is not None and self.tokens is not None:
            raise ValueError("give sequences or tokens, not both")
        REFINEMENTS.options(self.name, self.options)


@dataclass(frozen=True, config=_STRICT)
class TaskRecipe:
    """Prompts with answers to specialize for; `spectrim.data.tasks.TaskSettings` has the rest.

    data: FILE.jsonl, gsm8k:FILE, math:FILE, arithmetic:train:COUNT, or plain text. labels: the
    loss counts the answers' tokens, or all. length: tokens of the longest row, None for the
    model's context (at most 2048). A task takes the place of the calibration's text.
    """

    data: str
    prompt_field: str | None = None
    answer_field: str | None = None
    template: str | None = None
    shots: int = 0
    limit: int | None = None
    labels: Literal["answer", "all"] = "answer"
    length: int | None = Field(default=None, ge=2)


@dataclass(frozen=True, config=_STRICT)
class EmbeddingRecipe:
    """The embedding table, and an output embedding tied to it, in two factors.

    budget: fraction of the table's weights that is kept, apart from the layers' own budget.
    """

    budget: float = Field(default=0.5, gt=0, le=1)
    method: str = "afm"
    options: dict[str, Any] = Field(default_factory=dict)

    def __post_init__(self) -> None:
        TABLE_METHODS.options(self.method, self.options)


@dataclass(frozen=True, config=_STRICT)
class Recipe:
    """budget: fraction of the compressed layers' weights that is kept (0.8 keeps 80%).

    include / exclude: regular expressions on layer names; by default every linear layer of
    the decoder blocks. rank_multiple: ranks are multiples of it; "auto" is the device's (see
    `spectrim.planning.rank_multiples`). latency: a budget of time in place of `budget`.
    task: what to specialize for. pruning: choose the method's bases one
    by one, by what each is worth to the task, in place of an allocation. refinement: what to
    train after compressing, in this order. save_dtype None: the dtype of the original.
    """

    method: str = "obd"
    method_options: dict[str, Any] = Field(default_factory=dict)
    allocation: str = "loss_optimal"
    allocation_options: dict[str, Any] = Field(default_factory=dict)
    layer: str = "pivoted"
    layer_options: dict[str, Any] = Field(default_factory=dict)
    budget: float = 0.8
    rank_multiple: Annotated[int, Field(ge=1)] | Literal["auto"] = 1
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
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
    refinement: tuple[RefinementRecipe, ...] = ()
    save_dtype: Literal["float32", "bfloat16", "float16"] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.budget <= 1:
            raise InputError(
                f"budget {self.budget} is out of range: it is the fraction of the weights that "
                "is kept, above 0 and at most 1 (0.8 keeps 80%)"
            )
        if self.latency is not None:
            _check_latency(self)
        DECOMPOSITIONS.options(self.method, self.method_options)
        ALLOCATORS.options(self.allocation, self.allocation_options)
        LAYERS.options(self.layer, self.layer_options)
        if self.quantization is not None:
            _check_quantization(self, self.quantization)

    @property
    def statistics(self) -> tuple[str, ...]:
        """What the method and the allocation need, and what prices every method in nats."""
        method = DECOMPOSITIONS.get(self.method).REQUIRES
        allocation = ALLOCATORS.get(self.allocation).REQUIRES
        base = QUANTIZERS.get(self.correction.quantizer).REQUIRES if self.correction else ()
        return tuple(sorted({*method, *allocation, *PRICING, *base}))

    @property
    def wide(self) -> Wide:
        """How covariances of wider sides are kept: "projected" by the layers' weights where
        nothing reads them but to decompose the layer itself, and to price that."""
        method = DECOMPOSITIONS.get(self.method)
        reads = set(PRICING) & set(method.REQUIRES)
        whole = (
            not hasattr(method, "metric"),
            bool(reads) and not getattr(method, "THROUGH_WEIGHT", False),
            self.calibration.wide_covariances == "full"
            or self.calibration.memory_budget is not None,
            self.sharing.rule != "none",
            self.correction is not None,
            self.quantization is not None,
            any(required_statistics(step.name, step.options) for step in self.refinement),
        )
        return "full" if any(whole) else "projected"

    @property
    def sharing_key(self) -> dict[str, Any]:
        """All that who shares a basis depends on; empty where nobody does."""
        if self.sharing.rule == "none":
            return {}
        return {"sharing": [asdict(self.sharing), self.layer, self.rank_multiple]}

    @property
    def averages_hessian(self) -> bool:
        """Only methods whose metric is the loss's curvature have a path to average it along."""
        curved = "gradient_covariance" in DECOMPOSITIONS.get(self.method).REQUIRES
        return (
            curved
            and self.hessian_averaging.weight > 0
            and self.budget < self.hessian_averaging.below_budget
        )

    def at_budget(self, budget: float) -> Recipe:
        """For a plan of another budget that was made from this recipe's own statistics."""
        other = self.with_changes(budget=budget)
        if other.averages_hessian == self.averages_hessian:
            return other
        always, never = 2.0, 0.0
        below = always if self.averages_hessian else never
        return other.with_changes(
            hessian_averaging=replace(self.hessian_averaging, below_budget=below)
        )

    def for_probing(self, budget: float) -> Recipe:
        """Loss-optimal plain factors: the same plans whatever the recipe's own choices."""
        return self.with_changes(
            budget=budget,
            allocation="loss_optimal",
            allocation_options={},
            layer="lowrank",
            layer_options={},
            rank_multiple=1,
            latency=None,
            quantization=None,
        )

    def with_changes(self, **changes: Any) -> Recipe:
        """Top-level fields replaced; raises InputError for a value that does not fit."""
        try:
            return replace(self, **changes)
        except ValidationError as error:
            raise InputError(_explain("options", error)) from error

    def to_dict(self) -> dict[str, Any]:
        return TypeAdapter(Recipe).dump_python(self, mode="json")

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False)


def _check_latency(recipe: Recipe) -> None:
    names = ("pruning", "correction", "quantization")
    if found := [name for name in names if getattr(recipe, name) is not None]:
        raise InputError(f"a budget of time knows no {found[0]}; give one of the two")
    if recipe.layer not in TIMED or recipe.sharing.rule != "none":
        raise InputError(TIMED_ONLY)


def _check_quantization(recipe: Recipe, given: QuantizationRecipe) -> None:
    multiple = 1 if recipe.rank_multiple == "auto" else recipe.rank_multiple
    if multiple % given.multiple:
        raise InputError(
            f"torchao's int4 reads groups of {given.group_size} columns, so ranks have to be "
            f"multiples of it: set rank_multiple={given.multiple}, or quantization.backend=rtn"
        )
    if recipe.allocation not in BY_STORAGE:
        raise InputError(
            f"allocation '{recipe.allocation}' does not count bytes; with quantized factors "
            f"choose one of {', '.join(BY_STORAGE)}"
        )
    if recipe.pruning is not None:
        raise InputError("bases are selected by weights, not bytes; leave out quantization")


def recipe_from(values: Any, source: str) -> Recipe:
    """A recipe from plain values. Raises InputError that names each wrong field."""
    if not isinstance(values, dict):
        raise InputError(f"{source} must hold a mapping of recipe fields")
    check_fields(values, source)
    try:
        return TypeAdapter(Recipe).validate_python(values)
    except ValidationError as error:
        raise InputError(_explain(source, error)) from error


def _explain(source: str, error: ValidationError) -> str:
    """Each wrong field by its path; of a choice of types, which pydantic names as a last step
    like "constrained-int", every alternative."""
    parts = []
    for item in error.errors():
        path = [
            str(step)
            for step in item["loc"]
            if str(step).isidentifier() or isinstance(step, int)
        ]
        parts.append(f"{'.'.join(path) or 'recipe'}: {item['msg']}")
    return f"{source}: " + "; ".join(parts)


__all__ = [
    "CalibrationRecipe",
    "CorrectionRecipe",
    "EmbeddingRecipe",
    "HessianAveragingRecipe",
    "ProbeRecipe",
    "QuantizationRecipe",
    "Recipe",
    "RefinementRecipe",
    "SharingRecipe",
    "TaskRecipe",
    "recipe_from",
]
