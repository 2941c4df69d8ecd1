"""Compare the compression error of a text with that of the calibration: is the text inside?

    e_l(t)  = d_t^T C_g d_t,   d_t = (W - W_hat) x_t + b - b_hat        at layer l, token t
    m_l     = E_calibration[e_l] = tr(C_g D C_x D^T),   D = W - W_hat   (and what a bias adds)
    score   = sum_l sum_{t in document} e_l(t)  /  (tokens sum_l share_l m_l)

C_g and C_x are the calibration's statistics, x the original model's activations. For cut OBD
factors m_l is the tail energy sum_{i>r} s_i^2; half of it is the predicted loss increase. The
score is 1 on average over the calibration text, and larger where errors fall on directions that
the calibration took to be rare. The same idea on residuals of features: SubspaceAD.

S. Damm et al., 2026, arXiv:2602.23013 (subspace residuals as an anomaly score).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spectrim.calibration.in_memory import Batch, batches
from spectrim.data import TokenBlocks
from spectrim.errors import InputError
from spectrim.linalg.ranking import rank_correlation
from spectrim.models.capture import BatchIndex, CaptureSpec, capture
from spectrim.models.hooks import inference
from spectrim.models.linear import get_bias, get_weight
from spectrim.models.replace import compact_layers
from spectrim.models.targets import Target
from spectrim.pipeline.calibrate import calibrate
from spectrim.pipeline.recipe import Recipe
from spectrim.runtime.context import ProgressBar, RunContext, silent
from spectrim.statistics import (
    Calibration,
    LayerTokens,
    at_least_float32,
    relative_distance,
)

TOKENS_PER_BATCH = 1024
_SMALLEST = 1e-300
"""Divisor where nothing was lost."""


@dataclass(frozen=True)
class LayerError:
    """A layer's mean error on the calibration text and on another, both in nats per token.

    drift: Bures-Wasserstein distance between the covariances of the layer's inputs on the two
    texts, relative to the root of the calibration's trace.
    """

    name: str
    calibrated: float
    found: float
    drift: float

    @property
    def ratio(self) -> float:
        return self.found / self.calibrated if self.calibrated > 0 else 1.0


@dataclass(frozen=True)
class DocumentError:
    """score: 1 as the calibration; loss_increase: measured, nats per token."""

    tokens: int
    score: float
    loss_increase: float


@dataclass(frozen=True)
class CompressionErrors:
    """Errors of a text by layer and by document.

    Attributes:
        score: of all tokens together.
        correlation: rank correlation of the documents' scores with their loss increase.
        token_correlation: of the tokens' errors with their divergence from the original.
    """

    layers: list[LayerError]
    documents: list[DocumentError]
    score: float
    correlation: float | None
    token_correlation: float | None


def own_calibration(
    original: PreTrainedModel,
    tokenizer: Any,
    recipe: Recipe,
    context: RunContext | None = None,
) -> Calibration:
    """Return the statistics of the recipe's text in full, as of the original model.

    They come from the cache where a run has stored them in this form. Fused experts of the
    original are split in place.
    """
    whole = replace(recipe.calibration, wide_covariances="full", covariance_bytes=None)
    averaging = replace(recipe.hessian_averaging, weight=0.0)
    recipe = recipe.with_changes(calibration=whole, hessian_averaging=averaging)
    return calibrate(original, tokenizer, recipe, context)


def compression_errors(
    original: PreTrainedModel,
    compressed: PreTrainedModel,
    calibration: Calibration,
    blocks: TokenBlocks,
    track: ProgressBar = silent,
) -> CompressionErrors:
    """Run both models over `blocks` and compare the errors with the calibration's.

    Documents are those of `blocks.document_of_row`, else its rows. Raises InputError for a
    model without compressed layers that the calibration covers.
    """
    layers = [
        _Layer.of(original.get_submodule(name), module.dense(), calibration, name)
        for name, module in compact_layers(compressed)
        if name in calibration.groups
    ]
    if not layers:
        raise InputError("no compressed layer is in the calibration; nothing to compare")
    run = _Run(original, compressed, {layer.name: layer for layer in layers})
    steps = batches(blocks, TOKENS_PER_BATCH, 0, original.device)
    count = -(-len(blocks) // max(1, TOKENS_PER_BATCH // blocks.ids.shape[1]))
    parts = [run.batch(batch) for batch in track(steps, "compression errors", count)]
    tokens = _Tokens.joined(parts)
    return _summary(layers, tokens, [tokens.of(rows) for rows in _documents(blocks)])


@dataclass
class _Layer:
    """The difference of a layer, the metric of its output, and sums over a text.

    weight (out, in), bias (out,) or None: original less compressed; metric (out, out): C_g.
    Biases count where the calibration has the mean inputs that their share of m_l needs.
    """

    name: str
    weight: Tensor
    bias: Tensor | None
    metric: Tensor
    inputs: Tensor
    mean: float
    share: float
    count: int = 0
    total: float = 0.0
    covariance: Tensor = field(default_factory=lambda: torch.empty(0))

    @classmethod
    def of(
        cls,
        module: nn.Module,
        compressed: tuple[Tensor, Tensor | None],
        calibration: Calibration,
        name: str,
    ) -> _Layer:
        weight = (get_weight(module).double() - compressed[0].double()).detach()
        known = calibration.layer(name)
        metric, inputs = known["gradient_covariance"], known["input_covariance"]
        error, bias = weight @ inputs @ weight.T, None
        if "input_mean" in known and (bias := _bias_change(module, compressed[1])) is not None:
            cross = torch.outer(weight @ known["input_mean"], bias)
            error = error + cross + cross.T + torch.outer(bias, bias)
        mean = float((metric * error).sum())
        return cls(name, weight, bias, metric, inputs, mean, known.share)

    def errors(self, x: Tensor) -> Tensor:
        """Return e (n,) of inputs (n, in), and add them to the sums."""
        x = at_least_float32(x)
        change = x @ self.weight.T.to(x)
        if self.bias is not None:
            change = change + self.bias.to(x)
        errors = ((change @ self.metric.to(x)) * change).sum(1).clamp_min(0).double()
        self.count += len(x)
        self.total += float(errors.sum())
        gram = (x.T @ x).double().cpu()
        self.covariance = gram if self.covariance.numel() == 0 else self.covariance + gram
        return errors

    def summary(self, tokens: int) -> LayerError:
        drift = 0.0
        if self.count:
            drift = relative_distance(self.inputs, self.covariance / self.count)
        found = 0.5 * self.total / max(tokens, 1)
        return LayerError(self.name, 0.5 * self.share * self.mean, found, drift)


@dataclass(frozen=True)
class _Tokens:
    """Each token's row, error, loss increase and divergence (NaN where not scored)."""

    row: Tensor
    error: Tensor
    increase: Tensor
    divergence: Tensor

    @classmethod
    def joined(cls, parts: Sequence[_Tokens]) -> _Tokens:
        fields = zip(*(vars(part).values() for part in parts), strict=True)
        return cls(*map(torch.cat, fields))

    def of(self, rows: Tensor) -> _Tokens:
        inside = torch.isin(self.row, rows)
        return _Tokens(*(tensor[inside] for tensor in vars(self).values()))


@dataclass(frozen=True)
class _Run:
    original: PreTrainedModel
    compressed: PreTrainedModel
    layers: dict[str, _Layer]

    def batch(self, batch: Batch) -> _Tokens:
        """Run both models over a batch and return figures of its real tokens."""
        errors = torch.zeros(batch.mask.numel(), dtype=torch.float64)
        numbers = torch.arange(len(errors), device=batch.mask.device)
        real = None if bool(batch.mask.all()) else batch.mask.flatten()

        def sink(name: str, tokens: LayerTokens, with_gradient: bool) -> None:
            found = self.layers[name].errors(tokens.x)
            errors.index_add_(0, tokens.sequence.cpu(), found.cpu())

        targets = [
            Target(name, (layer.weight.shape[0], layer.weight.shape[1]))
            for name, layer in self.layers.items()
        ]
        spec = CaptureSpec(BatchIndex(real, numbers), sink)
        with inference(self.original, self.compressed):
            with capture(self.original, targets, spec):
                first = _log_probabilities(self.original, batch)
            second = _log_probabilities(self.compressed, batch)
            increase, divergence = _losses(batch, first, second)
        mask, rows = batch.mask.cpu(), torch.arange(len(batch.ids)) + batch.first_sequence
        owner = rows[:, None].expand(mask.shape)[mask]
        return _Tokens(owner, errors[mask.flatten()], increase[mask], divergence[mask])


def _losses(batch: Batch, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return the increase of the loss and the divergence (B, T) at predicting positions."""
    counted = batch.mask[:, 1:] & batch.mask[:, :-1]
    if batch.scored is not None:
        counted &= batch.scored[:, 1:]
    labels = batch.ids[:, 1:, None]
    increase = (first - second)[:, :-1].gather(2, labels)[..., 0]
    divergence = (first.exp() * (first - second)).sum(-1)[:, :-1]
    nothing = torch.full((len(batch.ids), 1), torch.nan, device=first.device)
    ends = [
        torch.cat([values.where(counted, torch.nan), nothing], 1)
        for values in (increase, divergence)
    ]
    return ends[0].double().cpu(), ends[1].double().cpu()


def _log_probabilities(model: PreTrainedModel, batch: Batch) -> Tensor:
    attention = None if bool(batch.mask.all()) else batch.mask.long()
    output = model(input_ids=batch.ids, attention_mask=attention, use_cache=False)
    return at_least_float32(output.logits).log_softmax(-1)


def _bias_change(module: nn.Module, compressed: Tensor | None) -> Tensor | None:
    """Return b - b_hat (out,), None without biases."""
    biases = [b for b in (get_bias(module), compressed) if b is not None]
    if not biases:
        return None
    zero = torch.zeros_like(biases[0], dtype=torch.float64)
    first, second = (
        zero if b is None else b.detach().double() for b in (get_bias(module), compressed)
    )
    return first - second


def _documents(blocks: TokenBlocks) -> Iterator[Tensor]:
    """Yield the rows of each document."""
    rows = torch.arange(len(blocks))
    owner = rows if blocks.document_of_row is None else blocks.document_of_row
    yield from (rows[owner == number] for number in owner.unique())


def _summary(
    layers: Sequence[_Layer], tokens: _Tokens, parts: Sequence[_Tokens]
) -> CompressionErrors:
    expected = max(sum(layer.share * layer.mean for layer in layers), _SMALLEST)
    documents = [
        DocumentError(
            len(part.row),
            float(part.error.mean()) / expected,
            float(part.increase.nanmean().nan_to_num()),
        )
        for part in parts
    ]
    scored = ~tokens.divergence.isnan()
    scores = torch.tensor([document.score for document in documents])
    increases = torch.tensor([document.loss_increase for document in documents])
    return CompressionErrors(
        [layer.summary(len(tokens.row)) for layer in layers],
        documents,
        float(tokens.error.mean()) / expected,
        rank_correlation(scores, increases),
        rank_correlation(tokens.error[scored], tokens.divergence[scored]),
    )
