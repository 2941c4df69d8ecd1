"""Embedding tables as products: one file per metric that says what a row's error costs.

A table E (V, d) becomes E_hat = 1 mean^T + coefficients basis, (V, r) and (r, d), so that

    sum_v w_v (e_v - e_hat_v)^T M (e_v - e_hat_v)

is least: closed form, as for linear layers, with diag(w) on one side and M on the other. Where
the model ties its output embedding to the table, both use the same two factors.

A module declares its docstring, `REFERENCE`, `REQUIRES` (of "counts", "gradients", "head";
the last is gathered for tied tables only), optionally `Options`, and

    metric(problem, options) -> TableMetric
"""

from spectrim.embeddings._modules import FactoredEmbedding, FactoredHead
from spectrim.embeddings._problem import TableMetric, TableProblem, TableStatistics
from spectrim.embeddings._table import Table, factorize_table, table_rank
from spectrim.embeddings._tree import TableLocation, find_table, replace_table
from spectrim.registry import Registry

EMBEDDINGS = Registry("embedding method", "spectrim.embeddings")

__all__ = [
    "EMBEDDINGS",
    "FactoredEmbedding",
    "FactoredHead",
    "Table",
    "TableLocation",
    "TableMetric",
    "TableProblem",
    "TableStatistics",
    "factorize_table",
    "find_table",
    "replace_table",
    "table_rank",
]
