"""Image anomalies: `s(x) = || (I - U U^T)(x - mu) ||^2` of patch features (SubspaceAD).

A frozen vision backbone of transformers gives patch features, the mean over some of its hidden
layers without class and register tokens; the principal subspace of those of a few normal images
and of their rotations is the whole model. A map of residuals is resized to the image and
blurred, and an image scores the mean of its highest 1% of pixels. Any backbone that returns
`hidden_states` of tokens (n, l, d) or of maps (n, d, h, w) does. A fit of N patches costs one
pass of the backbone an image and rotation and O(N d^2 + d^3); a score a pass and O(d k) a
patch.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from spectrim.errors import InputError
from spectrim.estimators._images import as_grid, blur, rotate
from spectrim.estimators._sklearn import Array, BaseEstimator, check_is_fitted
from spectrim.estimators.subspace_detector import SubspaceDetector

REFERENCE = "Lendering et al., SubspaceAD, CVPR 2026, arXiv:2602.23013"
TAKES = "images"
TOP = 0.01
"""Share of the pixels whose mean is the score of an image."""


class PatchAnomalyDetector(BaseEstimator):
    """Score images by patches that normal images do not explain.

    Args:
        backbone: a vision model, or a name or directory for `AutoModel` of transformers.
        layers: indices of hidden states that are averaged (published runs: -12 to -18 of 40).
        n_components: of the subspace, a number or a share of the variance.
        rotations: copies of each normal image, evenly turned over the circle; 1 for none.
        batch_size: images at once.

    Attributes:
        detector_: the fitted SubspaceDetector of patches.
    """

    def __init__(
        self,
        backbone: nn.Module | str,
        *,
        layers: Sequence[int] = (-1,),
        n_components: float = 0.99,
        rotations: int = 30,
        batch_size: int = 8,
    ):
        self.backbone = backbone
        self.layers = layers
        self.n_components = n_components
        self.rotations = rotations
        self.batch_size = batch_size

    def fit(self, X: Any, y: Any = None) -> PatchAnomalyDetector:
        """Fit normal images (n, channels, height, width), normalized for the backbone.

        Raises InputError for other shapes, no rotation, or layers that the backbone lacks.
        """
        if self.rotations < 1 or not self.layers:
            raise InputError(
                f"rotations {self.rotations}, layers {tuple(self.layers)}; expected at least "
                "1, and at least one hidden state"
            )
        self.model_ = _load(self.backbone).eval()
        detector = SubspaceDetector(self.n_components)
        for angle in torch.arange(self.rotations) * (2 * torch.pi / self.rotations):
            for images in self._batches(X):
                patches = self._patches(rotate(images, float(angle)))
                detector.partial_fit(patches.flatten(0, 2).double().numpy())
        self.detector_ = detector
        return self

    def _batches(self, X: Any) -> Iterator[Tensor]:
        images = torch.as_tensor(X, dtype=torch.float32)
        if images.dim() != 4:
            raise InputError(
                f"images {tuple(images.shape)}; expected (n, channels, height, width)"
            )
        yield from images.split(self.batch_size)

    @torch.no_grad()
    def _patches(self, images: Tensor) -> Tensor:
        """Return features (n, rows, columns, d) of the patches."""
        place = next(self.model_.parameters())
        options: dict[str, Any] = {"output_hidden_states": True}
        if "interpolate_pos_encoding" in inspect.signature(self.model_.forward).parameters:
            options["interpolate_pos_encoding"] = True
        states = self.model_(images.to(place), **options).hidden_states
        patch = getattr(self.model_.config, "patch_size", 1)
        side = patch if isinstance(patch, int) else patch[0]
        if any(not -len(states) <= layer < len(states) for layer in self.layers):
            raise InputError(
                f"layers {tuple(self.layers)} of {len(states)} hidden states; expected "
                f"{-len(states)} to {len(states) - 1}"
            )
        chosen = [as_grid(states[layer], images.shape[2:], side) for layer in self.layers]
        return torch.stack(chosen).mean(0).float().cpu()

    def score_maps(self, X: Any) -> Tensor:
        """Return anomaly scores (n, height, width), higher is more anomalous."""
        check_is_fitted(self, "detector_")
        return torch.cat([self._maps(images) for images in self._batches(X)])

    def _maps(self, images: Tensor) -> Tensor:
        patches = self._patches(images)
        scores = -self.detector_.score_samples(patches.flatten(0, 2).double().numpy())
        grid = torch.from_numpy(scores).reshape(patches.shape[:3]).unsqueeze(1)
        size = (images.shape[2], images.shape[3])
        resized = functional.interpolate(grid, size, mode="bilinear", align_corners=False)
        return blur(resized)[:, 0]

    def score_samples(self, X: Any) -> Array:
        """Return minus the anomaly score of each image (n,): higher is more normal."""
        pixels = self.score_maps(X).flatten(1)
        highest = pixels.topk(max(1, int(TOP * pixels.shape[1])), dim=1).values
        scores: Array = -highest.mean(1).numpy()
        return scores


def _load(backbone: nn.Module | str) -> nn.Module:
    if isinstance(backbone, nn.Module):
        return backbone
    from transformers import AutoModel

    model: nn.Module = AutoModel.from_pretrained(backbone)
    return model


ESTIMATOR = PatchAnomalyDetector
