"""One estimator of each family of `spectrim.estimators` on generated rows.

    python examples/estimators.py

A detector of rows outside the subspace of normal ones, clusters of a union of subspaces,
missing entries and gross errors of a low-rank table, rows that stand for all rows in a
regression, and labels with a radius within which no perturbation changes them. Needs
spectrim[estimators].
"""

from __future__ import annotations

import argparse

import numpy as np
from sklearn.linear_model import LinearRegression
from sklearn.metrics import adjusted_rand_score, roc_auc_score

from spectrim.estimators import (
    DualSmoothing,
    LowRankImputer,
    RobustLowRank,
    SelfExpressiveClustering,
    SensitivitySampler,
    SubspaceDetector,
)


def union_of_subspaces(random: np.random.Generator, count: int) -> list[np.ndarray]:
    """Rows (count, 20) of each of three subspaces of dimension 3."""
    bases = [np.linalg.qr(random.normal(size=(20, 3)))[0].T for _ in range(3)]
    return [random.normal(size=(count, 3)) @ basis for basis in bases]


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=60, help="Rows of each subspace.")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    random = np.random.default_rng(options.seed)
    parts = union_of_subspaces(random, options.rows)
    rows, labels = np.concatenate(parts), np.repeat(np.arange(3), options.rows)
    half = options.rows // 2

    detector = SubspaceDetector(0.99).fit(parts[0][:half])
    new = np.concatenate([parts[0][half:], parts[1]])
    odd = np.r_[np.zeros(options.rows - half), np.ones(options.rows)]
    figures = {"detector, AUROC": float(roc_auc_score(odd, -detector.score_samples(new)))}

    found = SelfExpressiveClustering(3, random_state=0).fit_predict(rows)
    figures["clusters, Rand index"] = float(adjusted_rand_score(labels, found))

    table = parts[0]
    holes = random.random(table.shape) < 0.4
    filled = LowRankImputer(3, ridge=1e-12).fit_transform(np.where(holes, np.nan, table))
    figures["imputed, relative error"] = relative_error(filled, table)

    wrong = random.random(table.shape) < 0.1
    robust = RobustLowRank(3)
    codes = robust.fit_transform(np.where(wrong, 100.0, table))
    figures["under gross errors, relative error"] = relative_error(
        robust.inverse_transform(codes), table
    )

    design = np.c_[random.normal(size=(5000, 5)), np.arange(5000) < 4]
    y = design @ np.arange(1.0, 7.0) + 0.01 * random.normal(size=5000)
    sampler = SensitivitySampler(200, random_state=0).fit(design)
    kept = sampler.indices_
    model = LinearRegression(fit_intercept=False).fit(design[kept], y[kept], sampler.weights_)
    figures["regression on 200 of 5000 rows, error"] = float(
        np.abs(model.coef_ - np.arange(1.0, 7.0)).max()
    )

    shifted = random.normal(size=(200, 6)) + 2.0 * (np.arange(200) % 2)[:, None]
    smooth = DualSmoothing(sigma=0.5, random_state=0).fit(shifted, np.arange(200) % 2)
    figures["certified radius, mean"] = float(smooth.certified_radius(shifted).mean())
    for name, value in figures.items():
        print(f"{name}: {value:.3g}")
    return figures


def relative_error(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


if __name__ == "__main__":
    main()
