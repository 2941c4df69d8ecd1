"""Propose groups of matrices that could share one basis, by how alike their row spaces are.

    affinity(i, j) = ||V_i^T V_j||_F^2 / r           V (in, r): leading right singular vectors
    reduction(a, b) = R(Z_a + Z_b) - R_c             rows of both groups, nats per row (MCR2)

Groups are merged from the closest pair on: the greatest mean affinity, or the least coding rate
that keeping them apart would save. What is closest is only a proposal: each union has to be
`allowed`, which is where an error bound decides.

Basis affinity: J. Hamm and D. Lee, 2008; coding rate: Y. Yu et al., 2020, arXiv:2006.08558.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import torch
from torch import Tensor

from spectrim.linalg.coding_rate import rate_reduction
from spectrim.linalg.grassmann import basis_affinity

Group = tuple[int, ...]
Distance = Callable[[Group, Group], float]


def agglomerate(
    count: int, distance: Distance, allowed: Callable[[Group], bool], most: int
) -> list[Group]:
    """Merge 0 .. count - 1 into groups of at most `most`, closest pairs first.

    A pair whose union is not allowed stays apart. Returns the groups in the order of their
    first members.
    """
    groups: list[Group] = [(number,) for number in range(count)]
    left = {pair: distance(*pair) for pair in combinations(groups, 2)}
    while left:
        pair = min(left, key=lambda each: (left[each], each))
        del left[pair]
        union = tuple(sorted(pair[0] + pair[1]))
        if len(union) > most or not allowed(union):
            continue
        groups = [group for group in groups if group not in pair]
        left = {each: d for each, d in left.items() if not set(each) & set(pair)}
        left |= {(group, union): distance(group, union) for group in groups}
        groups.append(union)
    return sorted(groups)


def affinity_distance(matrices: Sequence[Tensor], rank: int) -> Distance:
    """Return one less the mean affinity of two groups' leading `rank` right directions."""
    bases = [
        torch.linalg.svd(matrix.double(), full_matrices=False).Vh[:rank].T
        for matrix in matrices
    ]
    known = {
        frozenset(pair): float(basis_affinity(bases[pair[0]], bases[pair[1]]))
        for pair in combinations(range(len(bases)), 2)
    }

    def distance(first: Group, second: Group) -> float:
        pairs = [known[frozenset((i, j))] for i in first for j in second]
        return 1 - sum(pairs) / len(pairs)

    return distance


def coding_distance(matrices: Sequence[Tensor], eps: float = 0.5) -> Distance:
    """Return the nats per row that two codes save over one for the rows of two groups.

    Every matrix is scaled to rows of mean square one. Cost O(n in min(n, in)) for n rows.
    """
    scaled = [
        matrix.double() * (len(matrix) ** 0.5 / matrix.double().norm()) for matrix in matrices
    ]

    def distance(first: Group, second: Group) -> float:
        parts = [torch.cat([scaled[i] for i in group]) for group in (first, second)]
        sizes = torch.tensor([len(part) for part in parts], device=parts[0].device)
        membership = torch.eye(2).to(parts[0]).repeat_interleave(sizes, dim=0)
        return float(rate_reduction(torch.cat(parts), membership, eps))

    return distance
