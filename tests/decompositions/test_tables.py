"""Every metric of a table: optimal at each rank, exact at full rank, right in both roles."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

from spectrim.calibration import CalibrationSettings
from spectrim.calibration.embedding import sum_table_statistics
from spectrim.data import TokenBlocks
from spectrim.decompositions import (
    TABLE_METHODS,
    FactoredTable,
    TableMetric,
    TableProblem,
    solve_table,
    table_rank,
)
from spectrim.decompositions._table import product_of_traces
from spectrim.errors import InputError, ModelError
from spectrim.layers import FactoredEmbedding, FactoredHead
from spectrim.linalg.metric import CovarianceMetric, IdentityMetric
from spectrim.models.embedding import find_table, replace_table
from spectrim.runtime.context import silent
from spectrim.statistics import TableStatistics
from tests.tiny_models import TINY_MODELS, tiny_gpt2, tiny_llama, tiny_tied, tiny_tokens
from tests.tolerances import AUTOGRAD_RELATIVE, FLOAT64_RELATIVE, FULL_RANK_ABSOLUTE

COUNT, WIDTH = 60, 12
METHODS = TABLE_METHODS.names()
methods = pytest.mark.parametrize("method", METHODS)
tied_or_not = pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])


def covariance(generator: torch.Generator) -> Tensor:
    root = torch.randn(WIDTH, 3 * WIDTH, generator=generator, dtype=torch.float64)
    return root @ torch.diag(torch.logspace(0, -2, 3 * WIDTH, dtype=torch.float64)) @ root.T


def problem(tied: bool, seed: int = 0) -> TableProblem:
    """Frequencies like those of words, and rows without any order."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(COUNT, WIDTH, generator=generator, dtype=torch.float64)
    order = torch.randperm(COUNT, generator=generator)
    counts = (1000 / torch.arange(1, COUNT + 1)).round()[order]
    counts[:4] = 0
    fisher = torch.rand(COUNT, generator=generator, dtype=torch.float64) * counts / 2000 + 1e-6
    known = TableStatistics(counts, covariance(generator), covariance(generator), fisher)
    return TableProblem(table + 0.5, tied, known)


def made(
    method: str, given: TableProblem, **options: float
) -> tuple[FactoredTable, TableMetric]:
    metric = TABLE_METHODS.get(method).table_metric(
        given, TABLE_METHODS.options(method, options)
    )
    return solve_table(given.table, metric), metric


def weighted_error(table: Tensor, other: Tensor, rows: Tensor, matrix: Tensor) -> float:
    """Return sum_v rows_v d_v^T M d_v with d = table - other, both (V, d)."""
    difference = (table - other).to(torch.float64)
    return float((rows[:, None] * difference * (difference @ matrix)).sum())


def matrix_of(metric: TableMetric) -> Tensor:
    return metric.width.gram(torch.eye(WIDTH, dtype=torch.float64))


@methods
def test_module_declares_itself(method):
    module = TABLE_METHODS.get(method)
    assert module.__doc__
    assert module.REFERENCE
    assert set(module.TABLE_REQUIRES) <= {"counts", "gradients", "head"}
    with pytest.raises(InputError, match="no_such"):
        TABLE_METHODS.options(method, {"no_such": 1})


@methods
@tied_or_not
@pytest.mark.parametrize("rank", [1, 5, WIDTH - 1])
def test_weighted_error_is_the_tail_energy(method, tied, rank):
    given = problem(tied)
    table, metric = made(method, given)
    error = weighted_error(given.table, table.weight(rank), metric.rows, matrix_of(metric))
    tail = float(table.factors.spectrum[rank:].square().sum())
    assert error == pytest.approx(tail, rel=FLOAT64_RELATIVE)
    assert table.lost(rank) == pytest.approx(
        tail / float(table.factors.spectrum.square().sum())
    )


@methods
@tied_or_not
def test_full_rank_is_exact(method, tied):
    given = problem(tied)
    table, _ = made(method, given)
    assert torch.allclose(table.weight(WIDTH), given.table, rtol=0, atol=FLOAT64_RELATIVE)


@methods
@tied_or_not
def test_no_neighbor_is_better(method, tied):
    """Neither other factors nor, where the metric keeps one, another mean."""
    given = problem(tied)
    table, metric = made(method, given)
    matrix, generator = matrix_of(metric), torch.Generator().manual_seed(1)
    left, right = table.factors.truncated(4)
    mean = torch.zeros(WIDTH, dtype=torch.float64) if table.mean is None else table.mean
    best = weighted_error(given.table, left @ right + mean, metric.rows, matrix)
    for size, _ in itertools.product((1e-4, 1e-2, 0.3), range(5)):
        moved = [
            part + size * torch.randn(part.shape, generator=generator, dtype=torch.float64)
            for part in (left, right, mean)
        ]
        shift = mean if table.mean is None else moved[2]
        other = moved[0] @ moved[1] + shift
        assert weighted_error(given.table, other, metric.rows, matrix) > best


@pytest.mark.parametrize("rank", [2, 6, 10])
def test_frequencies_beat_plain_svd_on_what_is_looked_up(rank):
    given = problem(tied=False)
    rows, matrix = given.frequencies(0.5), torch.eye(WIDTH, dtype=torch.float64)
    errors = {
        method: weighted_error(given.table, made(method, given)[0].weight(rank), rows, matrix)
        for method in ("svd", "afm")
    }
    assert errors["afm"] < 0.9 * errors["svd"]


def test_afm_is_pca_of_the_looked_up_rows():
    """Against the covariance of a list of rows, each as often as its token."""
    given = problem(tied=False)
    counts = given.known.counts.clamp_min(1)
    known = TableStatistics(counts)
    table, _ = made("afm", TableProblem(given.table, False, known), smoothing=1e-12)
    rows = given.table.repeat_interleave(counts.long(), 0)
    mean = rows.mean(0)
    directions = torch.linalg.svd(rows - mean, full_matrices=False).Vh[:5]
    expected = (given.table - mean) @ directions.T @ directions + mean
    assert torch.allclose(table.weight(5), expected, atol=1e-6)


@pytest.mark.parametrize("rank", [3, 8])
def test_a_tied_table_is_better_in_its_output_role_than_one_made_for_lookups(rank):
    given = problem(tied=True)
    fisher, inputs = given.output
    both = made("afm", given)[0].weight(rank)
    lookups = made("afm", given, output=0.0)[0].weight(rank)
    assert weighted_error(given.table, both, fisher, inputs) < weighted_error(
        given.table, lookups, fisher, inputs
    )
    rows, eye = given.frequencies(0.5), torch.eye(WIDTH, dtype=torch.float64)
    assert weighted_error(given.table, lookups, rows, eye) <= weighted_error(
        given.table, both, rows, eye
    )


def test_roles_alike_add_exactly():
    generator = torch.Generator().manual_seed(3)
    rows = torch.rand(5, generator=generator, dtype=torch.float64)
    matrix = covariance(generator)
    other_rows = torch.rand(5, generator=generator).double()
    for other in ((rows, covariance(generator)), (other_rows, matrix)):
        weights, product = product_of_traces([(rows, matrix), other])
        expected = torch.kron(rows.diag(), matrix) + torch.kron(other[0].diag(), other[1])
        assert torch.allclose(torch.kron(weights.diag(), product), expected)


def test_rows_without_weight_are_an_error():
    with pytest.raises(InputError, match="smoothing"):
        TableMetric(torch.tensor([1.0, 0.0]), IdentityMetric(), True)
    with pytest.raises(InputError, match="smoothing"):
        TABLE_METHODS.options("afm", {"smoothing": 0})


def test_directions_that_cost_nothing_go_first():
    given = problem(tied=False)
    matrix = torch.eye(WIDTH, dtype=torch.float64)
    matrix[0, 0] = 1e-6
    rows = torch.ones(COUNT, dtype=torch.float64)
    metric = TableMetric(rows, CovarianceMetric(matrix, 0.0), centered=False)
    table = solve_table(given.table, metric)
    error = (given.table - table.weight(WIDTH - 1)).square().sum(0)
    assert error[0] > 100 * error[1:].sum()


@pytest.mark.parametrize(
    ("budget", "multiple", "rank"), [(1.0, 1, 10), (0.5, 1, 5), (0.5, 4, 4), (0.1, 1, 1)]
)
def test_ranks_meet_the_budget(budget, multiple, rank):
    assert table_rank((COUNT, WIDTH), budget, multiple) == rank
    assert FactoredEmbedding.cost(COUNT, WIDTH, rank) <= budget * COUNT * WIDTH


def test_a_budget_below_rank_one_is_an_error():
    with pytest.raises(InputError, match="0\\.1"):
        table_rank((COUNT, WIDTH), 0.09)
    with pytest.raises(InputError, match="rank 8"):
        table_rank((COUNT, WIDTH), 0.5, 8)


@tied_or_not
def test_the_modules_multiply_like_the_dense_table(tied):
    table, _ = made("afm" if tied else "svd", problem(tied))
    module = table.module(5)
    assert torch.allclose(module.dense(), table.weight(5))
    ids, hidden = torch.tensor([[0, 3, 3], [59, 1, 7]]), torch.randn(2, 3, WIDTH).double()
    assert torch.allclose(module(ids), table.weight(5)[ids])
    head = FactoredHead(module)
    assert torch.allclose(head(hidden), hidden @ table.weight(5).T)
    assert list(head.parameters()) == []


@pytest.mark.parametrize("name", ["llama", "tied", "gpt2", "moe"])
def test_a_models_table_is_found(name):
    model = TINY_MODELS[name]()
    place = find_table(model)
    assert model.get_submodule(place.name) is model.get_input_embeddings()
    assert place.shape == tuple(model.get_input_embeddings().weight.shape)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert (place.head is not None) == tied


class Scaled(nn.Embedding):
    def forward(self, ids: Tensor) -> Tensor:
        return 2 * super().forward(ids)


def test_tables_with_arithmetic_of_their_own_are_an_error():
    model = tiny_llama()
    model.model.embed_tokens = Scaled(128, 32)
    with pytest.raises(ModelError, match="Scaled"):
        find_table(model)
    model = tiny_tied()
    model.lm_head.bias = nn.Parameter(torch.zeros(128))
    with pytest.raises(ModelError, match="bias"):
        find_table(model)


ALL = frozenset({"counts", "gradients", "head"})


def blocks_of(ids: Tensor, mask: Tensor | None = None) -> TokenBlocks:
    return TokenBlocks(ids, mask, "fingerprint", "test", len(ids))


@pytest.mark.parametrize("build", [tiny_tied, tiny_gpt2])
def test_statistics_are_autograds_in_float64(build):
    model, ids = build(), tiny_tokens(5, 12, seed=2)
    sums = sum_table_statistics(
        model, blocks_of(ids), ALL, CalibrationSettings((), tokens_per_batch=24), silent
    )
    twin = copy.deepcopy(model).double()
    looked_up = twin.get_input_embeddings()(ids).detach().requires_grad_()
    output = twin(inputs_embeds=looked_up, output_hidden_states=True, use_cache=False)
    logits = output.logits
    loss = nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum"
    )
    (gradient,) = torch.autograd.grad(loss, looked_up)
    g, h = gradient.flatten(0, 1), output.hidden_states[-1].detach().flatten(0, 1)
    predicted = logits.detach().softmax(-1).flatten(0, 1)
    expected = {
        "counts": torch.bincount(ids.flatten(), minlength=128).double(),
        "gradients": g.T @ g,
        "head_inputs": h.T @ h,
        "head_fisher": (predicted * (1 - predicted)).sum(0),
    }
    assert sums.keys() == expected.keys()
    for name, value in expected.items():
        error = float((sums[name] - value).norm())
        assert error <= AUTOGRAD_RELATIVE * float(value.norm()), name
    known = TableStatistics.from_sums(sums)
    assert torch.allclose(known.gradients, sums["gradients"] / 60)


def test_padding_does_not_count_and_the_model_is_left_as_it_was():
    model = tiny_tied()
    model.train()
    ids, mask = tiny_tokens(2, 12), torch.ones(2, 12, dtype=torch.bool)
    mask[1, 7:] = False
    settings = CalibrationSettings((), tokens_per_batch=64)
    sums = sum_table_statistics(model, blocks_of(ids * mask, mask), ALL, settings, silent)
    parts = [
        sum_table_statistics(model, blocks_of(row[None, :length]), ALL, settings, silent)
        for row, length in zip(ids, (12, 7), strict=True)
    ]
    for name, value in sums.items():
        total = sum(part[name] for part in parts)
        assert torch.allclose(value, total, rtol=1e-4, atol=1e-6), name
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not model.get_input_embeddings()._forward_hooks
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_counting_runs_no_model(monkeypatch):
    model = tiny_llama()
    monkeypatch.setattr(model, "forward", lambda *a, **k: pytest.fail("the model ran"))
    ids = tiny_tokens(2, 12)
    wanted = frozenset({"counts"})
    sums = sum_table_statistics(model, blocks_of(ids), wanted, CalibrationSettings(()), silent)
    assert sums["counts"].sum() == 24


def test_weights_that_are_not_finite_are_an_error():
    model = tiny_tied()
    model.model.layers[0].mlp.up_proj.weight.data.fill_(torch.nan)
    with pytest.raises(ModelError, match="not finite"):
        sum_table_statistics(
            model, blocks_of(tiny_tokens()), ALL, CalibrationSettings(()), silent
        )


def test_full_rank_keeps_a_models_logits():
    model, ids = tiny_tied(), tiny_tokens()
    place = find_table(model)
    weight = model.get_input_embeddings().weight.detach().double()
    rows = torch.ones(len(weight), dtype=torch.float64)
    table = solve_table(weight, TableMetric(rows, IdentityMetric(), centered=True))
    with torch.no_grad():
        expected = model(ids).logits
        replace_table(model, place, table.module(weight.shape[1]))
        assert torch.allclose(model(ids).logits, expected, atol=FULL_RANK_ABSOLUTE)
