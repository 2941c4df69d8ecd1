"""Every estimator against a named baseline, on digits or generated data.

    python benchmarks/estimators_table.py              # about three minutes on one core
    python benchmarks/estimators_table.py altmin subgm # some rows

One row a method: data, metric, its result, the baseline's, and a verdict by a rule:
`reproduced` if it is ahead by the stated margin, `level` within it, `not at this scale` if it
is behind. Markdown on standard output.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from sklearn.neural_network import MLPClassifier, MLPRegressor
from transformers import ViTConfig, ViTModel

from spectrim.estimators import (
    ABSTAIN,
    DualSmoothing,
    FrechetSDR,
    ManifoldClustering,
    PatchAnomalyDetector,
    RandomizedSmoothing,
    SelfExpressiveClustering,
    SensitivitySampler,
    SpectralProbe,
    SubspaceDetector,
    SupervisedDictionary,
    checkerboard,
    truncate_head,
)
from spectrim.linalg.completion import complete
from spectrim.linalg.measurements import Dense, Entries
from spectrim.linalg.robust_recovery import robust_recover
from spectrim.linalg.sparse_bayes import SparseOptions, solve_kronecker_sbl


@dataclass(frozen=True)
class Row:
    """margin: by how much, or for errors by which factor, it must be ahead."""

    method: str
    data: str
    measure: str
    own: float
    baseline: str
    theirs: float
    margin: float
    error: bool = False

    @property
    def verdict(self) -> str:
        if self.error:
            ahead, behind = self.theirs / self.own, self.own / self.theirs
        else:
            ahead, behind = self.own - self.theirs, self.theirs - self.own
        if ahead >= self.margin:
            return "reproduced"
        return "level" if behind < self.margin else "not at this scale"


def digits() -> tuple[np.ndarray, np.ndarray]:
    data, target = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(data))
    return data[order] / 16, target[order]


def subspace_detector() -> Iterator[Row]:
    data, target = digits()
    areas: dict[str, list[float]] = {"own": [], "isolation forest": [], "nearest neighbor": []}
    for digit in range(10):
        normal, others = data[target == digit], data[target != digit]
        train, left = normal[:60], np.concatenate([normal[60:], others])
        odd = np.r_[np.zeros(len(normal) - 60), np.ones(len(others))]
        scores = {
            "own": -SubspaceDetector(0.9).fit(train).score_samples(left),
            "isolation forest": -IsolationForest(random_state=0).fit(train).score_samples(left),
            "nearest neighbor": NearestNeighbors(n_neighbors=1)
            .fit(train)
            .kneighbors(left)[0][:, 0],
        }
        for name, score in scores.items():
            areas[name].append(roc_auc_score(odd, score))
    own = float(np.mean(areas.pop("own")))
    for name, found in areas.items():
        data_name = "digits, 60 normal rows of one class"
        yield Row("subspace_detector", data_name, "AUROC", own, name, np.mean(found), 0.01)


def patch_anomaly() -> Iterator[Row]:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=128,
        image_size=32,
        patch_size=4,
    )
    backbone = ViTModel(config)
    grid = torch.linspace(-1, 1, 32)
    slope = torch.randn(140, 3, 2, 1, 1)
    images = slope[:, :, 0] * grid + slope[:, :, 1] * grid[:, None]
    images = images + 0.3 * torch.randn(140, 3, 32, 32)
    train, test = images[:40], images[40:]
    pattern = ((torch.arange(8)[:, None] + torch.arange(8)) % 2).float()
    for image in test[50:]:
        image[:, 12:20, 12:20] += 1.0 * pattern
    odd = np.r_[np.zeros(50), np.ones(50)]
    detector = PatchAnomalyDetector(backbone, layers=(1, 2), rotations=8).fit(train)
    own = roc_auc_score(odd, -detector.score_samples(test))
    pixels = SubspaceDetector(0.9).fit(train.flatten(1).numpy())
    theirs = roc_auc_score(odd, -pixels.score_samples(test.flatten(1).numpy()))
    data = "generated images, random backbone"
    yield Row("patch_anomaly", data, "image AUROC", own, "residual of pixels", theirs, 0.01)


def _noisy_network(
    rows: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.nn.Module, torch.nn.Linear]:
    torch.manual_seed(0)
    body = torch.nn.Sequential(
        torch.nn.Linear(64, 512), torch.nn.ReLU(), torch.nn.Linear(512, 512), torch.nn.ReLU()
    )
    head = torch.nn.Linear(512, 10)
    parameters = [*body.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    for _ in range(150):
        for batch in torch.randperm(len(rows)).split(64):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(head(body(rows[batch])), labels[batch])
            loss.backward()
            optimizer.step()
    return body, head


def spectral_truncation() -> Iterator[Row]:
    data, target = digits()
    random = np.random.default_rng(0)
    wrong = random.random(1000) < 0.4
    noisy = np.where(wrong, random.integers(10, size=1000), target[:1000])
    rows = torch.from_numpy(data).float()
    body, head = _noisy_network(rows[:1000], torch.from_numpy(noisy))
    with torch.no_grad():
        features = body(rows)
        full = (head(features[1000:]).argmax(1).numpy() == target[1000:]).mean()
        cut = truncate_head(head, features[:1000], 15)(features[1000:]).argmax(1).numpy()
    probe = SpectralProbe().fit(features[:1000].numpy(), noisy)
    name = "digits, 40% symmetric label noise"
    own = probe.score(features[1000:].numpy(), target[1000:])
    yield Row("spectral_truncation", name, "accuracy, probe", own, "full head", full, 0.05)
    own = (cut == target[1000:]).mean()
    yield Row("spectral_truncation", name, "accuracy, cut head", own, "full head", full, 0.05)


def supervised_dictionary() -> Iterator[Row]:
    random = np.random.default_rng(0)
    loadings = np.linalg.qr(random.normal(size=(30, 6)))[0]
    factors, beside = random.normal(size=(2300, 6)), random.normal(size=(2300, 1))
    rows = factors * [3, 2.5, 2, 1.5, 0.8, 0.8] @ loadings.T
    rows += 0.1 * random.normal(size=rows.shape)
    score = 2 * (factors[:, 4] - factors[:, 5]) + beside[:, 0]
    labels = (score + random.logistic(size=2300) > 0).astype(int)
    model = SupervisedDictionary(4, tradeoff=0.02)
    model.fit(rows[:300], labels[:300], covariates=beside[:300])
    own = (model.predict(rows[300:], covariates=beside[300:]) == labels[300:]).mean()
    pca = PCA(4).fit(rows[:300])
    both = np.c_[pca.transform(rows), beside]
    theirs = LogisticRegression().fit(both[:300], labels[:300]).score(both[300:], labels[300:])
    data, name = "generated, weak factors decide", "PCA + logistic regression"
    yield Row("supervised_dictionary", data, "accuracy", own, name, theirs, 0.05)


def frechet_sdr() -> Iterator[Row]:
    random = np.random.default_rng(0)
    direction = np.ones(10) / 10**0.5
    rows = random.normal(size=(400, 10))
    angle = 2 * rows @ direction + 0.2 * random.normal(size=400)
    points = np.c_[np.cos(angle), np.sin(angle)]
    cosine = lambda v: abs(v @ direction) / np.linalg.norm(v)  # noqa: E731
    own = cosine(FrechetSDR().fit(rows, points).components_[0])
    raw = np.arctan2(points[:, 1], points[:, 0])
    theirs = cosine(LinearRegression().fit(rows, raw).coef_)
    data = "generated, angles on a circle"
    yield Row("frechet_sdr", data, "cosine to the truth", own, "OLS on angles", theirs, 0.01)
    index = 2 * np.linalg.norm(rows[:, :2], axis=1) - rows[:, 2]
    y = np.where(random.random(400) < 0.1, 1000 * random.normal(size=400), index)
    ranks = lambda v: np.argsort(np.argsort(v))  # noqa: E731
    network = FrechetSDR(estimator="mlp", random_state=0).fit(rows, y)
    own = abs(np.corrcoef(ranks(network.transform(rows)[:, 0]), ranks(index))[0, 1])
    mlp = MLPRegressor(hidden_layer_sizes=(64, 64), max_iter=300, random_state=0).fit(rows, y)
    theirs = abs(np.corrcoef(ranks(mlp.predict(rows)), ranks(index))[0, 1])
    data = "generated, 10% outliers in y"
    yield Row("frechet_sdr", data, "rank correlation", own, "least squares", theirs, 0.05)


def _agreement(found: np.ndarray, truth: np.ndarray) -> float:
    counts = np.zeros((10, 10))
    np.add.at(counts, (found, truth), 1)
    rows, columns = linear_sum_assignment(-counts)
    return float(counts[rows, columns].sum() / len(truth))


def clustering() -> Iterator[Row]:
    """Mean accuracy on three draws of 1000 digits."""
    data, target = digits()
    draws = [np.random.default_rng(seed).permutation(len(data))[:1000] for seed in range(3)]
    models = {
        "k-means": KMeans(10, n_init=10, random_state=0),
        "self_expressive_clustering": SelfExpressiveClustering(10, dim=12, random_state=0),
        "self_expressive_clustering, encoder": SelfExpressiveClustering(
            10, dim=12, layers=(32,), random_state=0
        ),
        "self_expressive_clustering, encoder and last stage": SelfExpressiveClustering(
            10, dim=12, layers=(32,), structure=0.1, random_state=0
        ),
        "mcr2_clustering": ManifoldClustering(10, random_state=0),
    }
    means = {
        name: float(np.mean([_agreement(m.fit_predict(data[d]), target[d]) for d in draws]))
        for name, m in models.items()
    }
    theirs = means.pop("k-means")
    for name, own in means.items():
        yield Row(name, "1000 digits", "accuracy", own, "k-means", theirs, 0.02)


def _soft_impute(
    shape: tuple[int, int], where: tuple[np.ndarray, np.ndarray], values: np.ndarray
) -> np.ndarray:
    """Return the end of the path over the threshold, each point started from the last."""
    filled = np.zeros(shape)
    for threshold in np.geomspace(50, 0.01, 60):
        for _ in range(10):
            filled[where] = values
            u, s, vh = np.linalg.svd(filled, full_matrices=False)
            filled = u * np.maximum(s - threshold, 0) @ vh
    return filled


def altmin() -> Iterator[Row]:
    random = np.random.default_rng(0)
    m, n, rank = 200, 150, 4
    truth = random.normal(size=(m, rank)) @ random.normal(size=(rank, n))
    for oversampling in (2, 3, 5):
        count = oversampling * rank * (m + n - rank)
        index = random.permutation(m * n)[:count]
        where = (index // n, index % n)
        values = truth[where]
        entries = Entries(*map(torch.from_numpy, where), (m, n))
        found = complete(entries, torch.from_numpy(values), rank)
        error = lambda x: float(np.linalg.norm(x - truth) / np.linalg.norm(truth))  # noqa: E731
        own = error((found.left @ found.right.T).numpy())
        theirs = error(_soft_impute((m, n), where, values))
        data = f"generated, {oversampling} x degrees of freedom"
        yield Row(
            "altmin_completion", data, "relative error", own, "soft-impute", theirs, 2, True
        )


def subgm() -> Iterator[Row]:
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    factor = draw(20, 2)
    factor = factor / torch.linalg.matrix_norm(factor @ factor.T).sqrt()
    operator = Dense(draw(400, 20, 20), symmetric=True)
    y = operator.forward(factor, factor)
    y[torch.randperm(400, generator=generator)[:120]] += 10 * draw(120)
    flat = operator.matrices.add(operator.matrices.mT).flatten(1) / 2
    least = torch.linalg.lstsq(flat, y[:, None], driver="gelsd").solution.reshape(20, 20)
    values, vectors = torch.linalg.eigh((least + least.T) / 2)
    best = (vectors[:, -2:] * values[-2:].clamp_min(0)) @ vectors[:, -2:].T
    error = lambda x: float((x - factor @ factor.T).norm())  # noqa: E731
    for rank in (2, 20):
        own = error(robust_recover(operator, y, rank).matrix)
        data = f"generated, 30% outliers, rank at most {rank}"
        name = "least squares, rank 2"
        yield Row("subgm_recovery", data, "relative error", own, name, error(best), 2, True)


def kronecker() -> Iterator[Row]:
    errors: dict[str, list[float]] = {"svd": [], "am": [], "one factor": []}
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        draw = lambda *shape, g=generator: torch.randn(shape, generator=g, dtype=torch.float64)  # noqa: E731
        factors = [draw(7, 16) / 7**0.5 for _ in range(2)]
        rows, columns = (torch.randperm(16, generator=generator)[:3] for _ in range(2))
        x = torch.zeros(16, 16, dtype=torch.float64)
        x[rows[:, None], columns] = draw(3, 3)
        y = factors[0] @ x @ factors[1].T
        noise = float(y.square().mean()) / 100
        y = y + noise**0.5 * draw(7, 7)
        for update in ("svd", "am"):
            mean = solve_kronecker_sbl(factors, y, SparseOptions(noise, update)).mean
            errors[update].append(float((mean - x).square().sum() / x.square().sum()))
        flat = solve_kronecker_sbl([torch.kron(*factors)], y.flatten(), SparseOptions(noise))
        mean = flat.mean.reshape(16, 16)
        errors["one factor"].append(float((mean - x).square().sum() / x.square().sum()))
    plain = float(np.median(errors.pop("one factor")))
    for update, found in errors.items():
        own, data = float(np.median(found)), "generated, 49 measurements of 256, 20 dB"
        name = f"kronecker_sbl, {update}"
        yield Row(name, data, "median NMSE", own, "sparse Bayesian learning", plain, 1.5, True)


def sensitivity() -> Iterator[Row]:
    random = np.random.default_rng(0)
    rows = random.normal(size=(20_000, 10))
    rows[:, 9] = 0
    rows[:5, 9] = 30
    rows[5:25] *= 30
    directions = np.c_[random.normal(size=(10, 3000)), np.eye(10)]
    for p, method in ((2.0, "leverage"), (1.0, "root_leverage"), (1.0, "lewis")):
        truth = (np.abs(rows @ directions) ** p).sum(0)
        errors = {method: [], "uniform": []}
        for name, found in errors.items():
            for seed in range(9):
                model = SensitivitySampler(500, p=p, method=name, random_state=seed)
                kept, weights = model.fit_sample(rows)
                sums = weights @ (np.abs(kept @ directions) ** p)
                found.append(np.abs(sums / truth - 1).max())
        own, theirs = (float(np.median(found)) for found in errors.values())
        data = f"generated 20,000 x 10, 500 kept, p = {p:g}"
        name = f"sensitivity_sampling, {method}"
        yield Row(name, data, "worst relative error", own, "uniform", theirs, 2, True)


def smoothing() -> Iterator[Row]:
    data, target = digits()
    images = torch.from_numpy(data).reshape(-1, 1, 8, 8)
    data = torch.nn.functional.interpolate(images, (16, 16)).flatten(1).numpy()
    network = MLPClassifier(hidden_layer_sizes=(128,), max_iter=8, random_state=0)
    for sigma in (0.25, 0.75):
        radii = []
        for model in (
            DualSmoothing(
                network, split=checkerboard(16, 16), sigma=sigma, copies=5, random_state=0
            ),
            RandomizedSmoothing(network, sigma=sigma, copies=5, random_state=0),
        ):
            model.fit(data[:1000], target[:1000])
            label, radius = model.certify(data[1000:1150])
            right = (label != ABSTAIN) & (model.classes_[label] == target[1000:1150])
            radii.append(float((radius * right).mean()))
        name, baseline = f"digits at 16 x 16, sigma {sigma}", "randomized smoothing"
        yield Row(
            "dual_smoothing", name, "mean certified radius", radii[0], baseline, radii[1], 0.02
        )


ROWS: dict[str, Callable[[], Iterator[Row]]] = {
    "subspace_detector": subspace_detector,
    "patch_anomaly": patch_anomaly,
    "spectral_truncation": spectral_truncation,
    "supervised_dictionary": supervised_dictionary,
    "frechet_sdr": frechet_sdr,
    "clustering": clustering,
    "altmin": altmin,
    "subgm": subgm,
    "kronecker": kronecker,
    "sensitivity": sensitivity,
    "smoothing": smoothing,
}


def main(names: list[str]) -> list[Row]:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # networks that stop before they converge
    print("| method | data | metric | own | baseline | its result | verdict |")
    print("|---|---|---|---|---|---|---|")
    rows = []
    for name in names or ROWS:
        for row in ROWS[name]():
            figures = [row.own, row.theirs]
            own, theirs = (
                f"{v:.1e}" if row.error and v < 1e-2 else f"{v:.3f}" for v in figures
            )
            cells = [row.method, row.data, row.measure, own, row.baseline, theirs, row.verdict]
            print("| " + " | ".join(cells) + " |", flush=True)
            rows.append(row)
    return rows


if __name__ == "__main__":
    main(sys.argv[1:])
