"""Unified negative pairs: `L = -log(e^{s t_y} / (sum_c e^{s t_c} + sum_N e^{s cos_ij}))`.

t are the base head's cosines with its margin, N the pairs i < j of the batch from different
classes. The pairs that a box-and-whisker rule keeps, cosines within [Q1 - w IQR, Q3 + w IQR],
are negatives of every row at once, so that class weights and embeddings are pushed apart on one
scale. Gradients reach both embeddings of a pair. Every row sees the same pairs, so their sum is
computed once: O(B^2 d) time and O(B^2) memory for a batch of B, where the released code tiles
all pairs for every row and fails without a GPU.

The base is any margin softmax loss of pytorch-metric-learning, such as CosFaceLoss or
ArcFaceLoss, whose reducer and regularizers apply. Without negatives the loss is the base's.
Source: Jung et al., 2022, arXiv:2203.11593.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from spectrim.errors import InputError

REFERENCE = "Jung et al., 2022, arXiv:2203.11593 (UNPG)"
BASE = ("get_cosine", "get_target_mask", "modify_cosine_of_target_classes", "scale_logits")


class UnifiedNegativePairs(nn.Module):
    """Add the batch's negative pairs to the softmax of `base_loss`.

    whisker: w, in interquartile ranges; infinity keeps all pairs. Raises InputError for a base
    that does not expose cosines and margins.
    """

    def __init__(self, base_loss: Any, whisker: float = 1.5):
        super().__init__()
        if missing := [name for name in BASE if not hasattr(base_loss, name)]:
            raise InputError(
                f"{type(base_loss).__name__} has no {missing[0]}; expected a margin softmax "
                "loss of pytorch-metric-learning, such as CosFaceLoss or ArcFaceLoss"
            )
        if not whisker >= 0:
            raise InputError(f"whisker={whisker:g}; expected a number >= 0, or infinity")
        self.base_loss = base_loss
        self.whisker = whisker

    def logits(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the base's logits (B, C), with margin and scale."""
        cosine = self.base_loss.get_cosine(embeddings)
        target = cosine.gather(1, labels[:, None])
        moved = self.base_loss.modify_cosine_of_target_classes(target.squeeze(1))
        with_margin = cosine.scatter(1, labels[:, None], moved[:, None].to(cosine))
        return self.base_loss.scale_logits(with_margin, embeddings)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of embeddings (B, d) with labels (B,)."""
        logits = self.logits(embeddings, labels)
        total = logits.logsumexp(1)
        if len(labels) > 1:
            pairs, kept = negative_pairs(embeddings, labels, self.whisker)
            lowest = torch.finfo(pairs.dtype).min / 2
            scaled = (self.base_loss.scale * pairs).masked_fill(~kept, lowest)
            total = torch.logaddexp(total, scaled.logsumexp(0))
        rows = total - logits.gather(1, labels[:, None]).squeeze(1)
        return self._reduced(rows, embeddings, labels)

    def _reduced(self, rows: Tensor, embeddings: Tensor, labels: Tensor) -> Tensor:
        base = self.base_loss
        indices = torch.arange(len(rows), device=rows.device)
        parts = {"loss": {"losses": rows, "indices": indices, "reduction_type": "element"}}
        base.add_weight_regularization_to_loss_dict(parts, base.W.t())
        base.add_embedding_regularization_to_loss_dict(parts, embeddings)
        return base.reducer(parts, embeddings, labels)

    def extra_repr(self) -> str:
        return f"whisker={self.whisker:g}"


def negative_pairs(
    embeddings: Tensor, labels: Tensor, whisker: float = 1.5
) -> tuple[Tensor, Tensor]:
    """Return the cosines (P,) of all P = B (B - 1) / 2 pairs and which are kept negatives.

    Quartiles are those of the L negatives, at `floor(L / 4)` and `floor(3 L / 4)` of the sorted
    list; they carry no gradient. Shapes do not depend on the labels.
    """
    unit = normalize(embeddings, dim=1)
    first, second = torch.triu_indices(len(unit), len(unit), 1, device=unit.device)
    cosines = (unit @ unit.T)[first, second]
    negative = labels[first] != labels[second]
    ordered = cosines.detach().masked_fill(~negative, torch.inf).sort().values
    count = negative.sum()
    low, high = ordered.take(torch.stack([count // 4, 3 * count // 4]))
    reach = whisker * (high - low) if whisker < torch.inf else torch.inf
    return cosines, negative & (cosines >= low - reach) & (cosines <= high + reach)


MODULE = UnifiedNegativePairs


def example() -> tuple[nn.Module, tuple[Tensor, ...]]:
    from pytorch_metric_learning.losses import CosFaceLoss

    base = CosFaceLoss(num_classes=3, embedding_size=5, margin=0.2, scale=4)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    return UnifiedNegativePairs(base), (torch.randn(6, 5, requires_grad=True), labels)
