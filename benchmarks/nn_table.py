"""Constrained layers and losses against their plain counterparts, on digits and generated data.

    python benchmarks/nn_table.py

About three minutes on one core; needs scikit-learn, pytorch-metric-learning and Pillow (the two
photographs of scikit-learn). Every row is a mean over seeds, paired with its baseline. It is
*reproduced* if it is better by more than two standard errors of the paired difference, *level*
within them, else *not at this scale*. Markdown on standard output.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np
import torch
from hyper_connections.manifold_constrained_hyper_connections import sinkhorn_knopps
from pytorch_metric_learning.losses import CosFaceLoss
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_curve
from super_resolution import restored
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from spectrim.linalg.spd import spd_exp, spd_function, spd_log
from spectrim.nn.grassmann_linear import GrassmannLinear
from spectrim.nn.perturb_then_diagonalize import hippo_legs, ssm_init
from spectrim.nn.spd_batch_norm import GBWBatchNorm
from spectrim.nn.spectral_sphere import SpectralSphere, spectral_sphere
from spectrim.nn.unified_negative_pairs import UnifiedNegativePairs
from spectrim.optim.riemannian_sgd import RiemannianSGD


@dataclass(frozen=True)
class Row:
    """One figure of a method and of its baseline, by seed. lower: whether less is better."""

    method: str
    data: str
    figure: str
    own: list[float]
    baseline: str
    base: list[float]
    lower: bool = False

    def verdict(self) -> str:
        sign = -1 if self.lower else 1
        gains = [sign * (a - b) for a, b in zip(self.own, self.base, strict=True)]
        margin = 2 * stdev(gains) / len(gains) ** 0.5
        if abs(fmean(gains)) <= margin:
            return "level"
        return "reproduced" if fmean(gains) > 0 else "not at this scale"

    def line(self) -> str:
        cells = f"{self.method}, {self.figure}", self.data, f"{fmean(self.own):.3g}"
        base = f"{self.baseline} {fmean(self.base):.3g}"
        return f"| {' | '.join((*cells, base, self.verdict()))} |"


def digits(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images (n, 64) and labels, halves for training and testing."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    half = len(x) // 2
    images, labels = torch.tensor(x[order] / 16).float(), torch.tensor(y[order])
    return images[:half], labels[:half], images[half:], labels[half:]


def embedder(width: int = 64) -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, width))


def epochs(count: int, rows: int, batch: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield from torch.randperm(rows, generator=generator).split(batch)


class CosineHead(nn.Module):
    def __init__(self, width: int, classes: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, width))

    def forward(self, x: Tensor) -> Tensor:
        return 25 * normalize(x, dim=1) @ normalize(self.weight, dim=1).T


HEADS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(64, 8),
    "cosine": lambda: CosineHead(64, 8),
    "k = 1": lambda: GrassmannLinear(64, 8, 1),
    "k = 8": lambda: GrassmannLinear(64, 8, 8),
}


def class_heads(head: str, seed: int) -> tuple[float, float]:
    """Accuracy on eight trained classes, and of a probe on the two that were not."""
    x, y, test, labels = digits(seed)
    torch.manual_seed(seed)
    network = nn.Sequential(embedder(), HEADS[head]())
    optimizer = RiemannianSGD(network.parameters(), lr=0.05)
    known = y < 8
    for rows in epochs(30, int(known.sum()), 64, seed):
        optimizer.zero_grad()
        cross_entropy(network(x[known][rows]), y[known][rows]).backward()
        optimizer.step()
    with torch.no_grad():
        right = (network(test).argmax(1) == labels)[labels < 8].float().mean().item()
        train, held = (network[0](part).numpy() for part in (x, test))
    chosen = np.concatenate([np.flatnonzero(y.numpy() == c)[:10] for c in range(10)])
    probe = LogisticRegression(max_iter=500).fit(train[chosen], y.numpy()[chosen])
    unseen = labels.numpy() >= 8
    return right, probe.score(held[unseen], labels.numpy()[unseen])


def grassmann_rows(seeds: int) -> Iterator[Row]:
    found = {head: [class_heads(head, seed) for seed in range(seeds)] for head in HEADS}
    base = {name: list(zip(*figures, strict=True)) for name, figures in found.items()}
    for head in ("k = 1", "k = 8"):
        for i, figure in enumerate(("trained classes", "probe on unseen classes")):
            own, linear = list(base[head][i]), list(base["linear"][i])
            yield Row(f"GCR, {head}", "digits", figure, own, "linear head", linear)
    own, cosine = list(base["k = 8"][1]), list(base["cosine"][1])
    yield Row("GCR, k = 8", "digits", "probe on unseen classes", own, "cosine head", cosine)


def wishart_classes(seed: int) -> tuple[Tensor, Tensor]:
    """Three classes of SPD matrices (12, 12) of condition 1e5 and random scale."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    labels = torch.arange(480) % 3
    spectrum = torch.logspace(0, -5, 12, dtype=torch.float64).sqrt()
    common = torch.linalg.qr(normal(12, 12)).Q
    turns = torch.linalg.qr(common + 0.15 * normal(3, 12, 12)).Q
    rows = (turns * spectrum)[labels] @ normal(480, 12, 48)
    return rows @ rows.mT / 48 * normal(480, 1, 1).exp(), labels


def region_covariances(seed: int) -> tuple[Tensor, Tensor]:
    """Covariances (7, 7) of position, intensity and derivatives over the pixels of digits."""
    x, y = load_digits(return_X_y=True)
    chosen = np.random.default_rng(seed).permutation(len(x))[:1200]
    images = x[chosen].reshape(-1, 8, 8) / 16
    down, across = np.gradient(images, axis=(1, 2))
    place = np.broadcast_to(np.mgrid[:8, :8] / 8, (len(images), 2, 8, 8))
    curves = np.gradient(down, axis=1), np.gradient(across, axis=2)
    maps = np.stack([images, down, across, *curves], axis=1)
    features = torch.tensor(np.concatenate([place, maps], axis=1)).flatten(2)
    centered = features - features.mean(2, keepdim=True)
    covariance = centered @ centered.mT / 64 + 1e-4 * torch.eye(7, dtype=torch.float64)
    return covariance, torch.tensor(y[chosen])


class LogEuclideanNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("variance", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        logs = spd_log(x)
        if self.training:
            mean = logs.mean(0)
            variance = (logs - mean).square().sum((1, 2)).mean()
            self.mean = mean.detach().lerp(self.mean, 0.9)
            self.variance = variance.detach().lerp(self.variance, 0.9)
        else:
            mean, variance = self.mean, self.variance
        return spd_exp(self.scale * (logs - mean) / (variance + 1e-5).sqrt())


class CovarianceNetwork(nn.Module):
    """Bilinear map, normalization, eigenvalues of at least 1e-8, logarithm, linear head."""

    def __init__(self, sizes: tuple[int, int], classes: int, norm: nn.Module):
        super().__init__()
        self.turn = nn.Parameter(nn.init.orthogonal_(torch.empty(sizes[1], sizes[0])))
        self.norm = norm
        self.head = nn.Linear(sizes[1] ** 2, classes)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        basis = torch.linalg.qr(self.turn.T).Q
        normed = self.norm(basis.T @ x @ basis)
        floored = spd_function(normed, lambda v: v.clamp_min(1e-8), lambda v: (v > 1e-8).to(v))
        return self.head(spd_log(floored).flatten(1))


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda n: nn.Identity(),
    "log-Euclidean": lambda n: LogEuclideanNorm(),
    "p = 1": lambda n: GBWBatchNorm(n, power=1.0),
    "p = 1/4": lambda n: GBWBatchNorm(n, power=0.25),
}
SETS = {
    "generated SPD, condition 1e5": (wishart_classes, (12, 8), 3),
    "covariance descriptors of digits": (region_covariances, (7, 6), 10),
}


def covariance_accuracy(name: str, norm: str, seed: int) -> float:
    make, sizes, classes = SETS[name]
    x, y = make(seed)
    half = len(x) // 2
    torch.manual_seed(seed)
    network = CovarianceNetwork(sizes, classes, NORMS[norm](sizes[1]))
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-2)
    for rows in epochs(12, half, 80, seed):
        optimizer.zero_grad()
        cross_entropy(network(x[:half][rows]), y[:half][rows]).backward()
        optimizer.step()
    with torch.no_grad():
        right = network.eval()(x[half:]).argmax(1) == y[half:]
    return right.double().mean().item()


def spd_rows(seeds: int) -> Iterator[Row]:
    for data in SETS:
        found = {n: [covariance_accuracy(data, n, s) for s in range(seeds)] for n in NORMS}
        for own in ("p = 1", "p = 1/4"):
            for base in ("none", "log-Euclidean"):
                name = "no normalization" if base == "none" else base
                yield Row(f"GBWBN, {own}", data, "accuracy", found[own], name, found[base])


def second_singular_value(mixings: Tensor) -> float:
    return torch.linalg.svdvals(torch.linalg.multi_dot(list(mixings.double())))[1].item()


def mixing_error(make: Callable[[Tensor], Tensor], start: Tensor, target: Tensor) -> float:
    logits = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        error = torch.linalg.matrix_norm(make(logits) - target)
        error.backward()
        optimizer.step()
    return (error / torch.linalg.matrix_norm(target)).item()


def sphere_rows(seeds: int) -> Iterator[Row]:
    kept, errors = ([], []), ([], [])
    for seed in range(seeds):
        torch.manual_seed(seed)
        logits, small = torch.eye(4) + 0.3 * torch.randn(48, 4, 4), torch.randn(3, 3)
        axis = torch.randn(4)
        axis = normalize(axis - axis.mean(), dim=0)
        reflection = torch.eye(4) - 2 * torch.outer(axis, axis)
        kept[0].append(second_singular_value(SpectralSphere()(logits)))
        kept[1].append(second_singular_value(sinkhorn_knopps(logits)))
        errors[0].append(mixing_error(spectral_sphere, small, reflection))
        errors[1].append(mixing_error(sinkhorn_knopps, logits[0], reflection))
    for figure, (own, base), data, lower in (
        ("second singular value", kept, "48 mixings of 4 streams, start + noise", False),
        ("relative error", errors, "a reflection of 4 streams", True),
    ):
        yield Row("sHC", data, figure, own, "doubly stochastic (mHC)", base, lower)


def transfer_error(n: int, kind: str, seed: int) -> tuple[float, float]:
    """Largest error of the transfer function for unit B and C, and that at the spikes of S4D
    relative to the function."""
    generator = torch.Generator().manual_seed(seed)
    frequencies = torch.logspace(0, 4, 3000, dtype=torch.float64)
    output = normalize(torch.randn(n, generator=generator, dtype=torch.float64), dim=0)
    exact, normal = (
        ssm_init(n, each).transfer(frequencies, output) for each in ("dplr", "s4d")
    )
    found = normal if kind == "s4d" else ssm_init(n, kind, 0.3).transfer(frequencies, output)
    spike = ((normal - exact) / exact).abs().argmax()
    error = (found - exact).abs()
    return (error.max() / hippo_legs(n)[1].norm()).item(), (error / exact.abs())[spike].item()


def state_space_rows(seeds: int) -> Iterator[Row]:
    for n in (16, 32, 64):
        own, base = ([transfer_error(n, k, s) for s in range(seeds)] for k in ("ptd", "s4d"))
        for i, figure in enumerate(("sup error of G", "relative error at the spike")):
            figures = [e[i] for e in own], [e[i] for e in base]
            data = f"HiPPO-LegS, n = {n}"
            yield Row("PTD, eps = .3", data, figure, figures[0], "S4D", figures[1], True)


def accepted(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """True acceptance rate of pairs at a false one of 1%."""
    with torch.no_grad():
        unit = normalize(network(x), dim=1)
    first, second = torch.triu_indices(len(x), len(x), 1)
    false, true, _ = roc_curve(y[first] == y[second], (unit @ unit.T)[first, second])
    return float(np.interp(0.01, false, true))


def verification(pairs: bool, seed: int) -> tuple[float, float]:
    """Acceptance on six trained classes and on four unseen ones."""
    x, y, test, labels = digits(seed)
    torch.manual_seed(seed)
    network = embedder(16)
    loss: nn.Module = CosFaceLoss(num_classes=6, embedding_size=16, margin=0.2, scale=16)
    loss = UnifiedNegativePairs(loss) if pairs else loss
    optimizer = torch.optim.Adam([*network.parameters(), *loss.parameters()], lr=1e-3)
    known = y < 6
    for rows in epochs(40, int(known.sum()), 128, seed):
        optimizer.zero_grad()
        loss(network(x[known][rows]), y[known][rows]).backward()
        optimizer.step()
    seen = labels < 6
    return accepted(network, test[seen], labels[seen]), accepted(
        network, test[~seen], labels[~seen]
    )


def pair_rows(seeds: int) -> Iterator[Row]:
    own, base = ([verification(p, s) for s in range(seeds)] for p in (True, False))
    for i, data in enumerate(("digits, 6 trained classes", "digits, 4 unseen classes")):
        figures = [e[i] for e in own], [e[i] for e in base]
        yield Row("UNPG", data, "TAR at FAR 1%", figures[0], "CosFace", figures[1])


def restoration_rows(seeds: int) -> Iterator[Row]:
    base = [restored(0.0, seed) for seed in range(seeds)]
    for weight in (0.001, 0.01, 0.1):
        own = [restored(weight, seed) for seed in range(seeds)]
        for i, figure in enumerate(("PSNR in dB", "error of the Haar energy")):
            figures = [e[i] for e in own], [e[i] for e in base]
            data, method = "2 photographs, x2", f"PCL-SR, weight {weight}"
            yield Row(method, data, figure, figures[0], "L1 alone", figures[1], i == 1)


EXPERIMENTS = {
    "grassmann_linear": (grassmann_rows, 8),
    "spd_batch_norm": (spd_rows, 3),
    "spectral_sphere": (sphere_rows, 5),
    "perturb_then_diagonalize": (state_space_rows, 3),
    "unified_negative_pairs": (pair_rows, 5),
    "frequency_contrastive": (restoration_rows, 3),
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(EXPERIMENTS), help="names, with commas")
    warnings.filterwarnings("ignore", category=UserWarning)
    print("| method, metric | data | own | baseline | |\n|---|---|---:|---:|---|")
    for name in parser.parse_args(arguments).only.split(","):
        rows, seeds = EXPERIMENTS[name]
        for row in rows(seeds):
            print(row.line(), flush=True)


if __name__ == "__main__":
    main()
