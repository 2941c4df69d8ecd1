"""What is left of a decomposition when experts are gone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from spectrim.linalg.truncated import Factors
from spectrim.planning.decomposition import Decomposition
from spectrim.planning.experts import is_left


def without_experts(
    decomposition: Decomposition, removed: Mapping[str, Sequence[int]]
) -> Decomposition:
    """Return the decomposition without the layers of the experts `removed` by block.

    A group keeps its basis for the members that are left, and their part of its curve.
    """
    kept = {
        name: [m for m in decomposition.groups.get(name, (name,)) if is_left(m, removed)]
        for name in decomposition.shapes
    }
    whole = [n for n in kept if len(kept[n]) == len(decomposition.groups.get(n, (n,)))]
    result = decomposition.select(whole)
    for name, members in kept.items():
        if members and name not in result.shapes:
            result.update(_smaller_group(decomposition, name, members))
            result = _with_rounding(result, decomposition, name, members)
    return result


def _smaller_group(
    decomposition: Decomposition, name: str, kept: Sequence[str]
) -> Decomposition:
    members = decomposition.groups[name]
    parts = decomposition.factors[name].split(members)
    left = torch.cat([parts[member].left for member in kept])
    shape = len(left), decomposition.shapes[name][1]
    ranks = min(*shape, len(decomposition.curves[name]) - 1)
    whole = decomposition.factors[name]
    shift = None if whole.bias_shift is None else whole.bias_shift[:ranks]
    new = "+".join(kept)
    factors = Factors(left[:, :ranks], whole.right[:ranks], whole.spectrum[:ranks], shift)
    rows = [list(members).index(member) for member in kept]
    shares = decomposition.shares[name][rows]
    group = {member: members[member] for member in kept}
    curve = decomposition.curves[name] * shares.sum(0)
    return replace(
        decomposition.select(()),
        shapes={new: shape},
        factors={new: factors},
        curves={new: curve[: ranks + 1]},
        groups={new: group} if len(kept) > 1 else {},
        shares={new: (shares / shares.sum(0))[:, : ranks + 1]} if len(kept) > 1 else {},
    )


def _with_rounding(
    result: Decomposition, decomposition: Decomposition, name: str, kept: Sequence[str]
) -> Decomposition:
    if name not in decomposition.rounding:
        return result
    new = "+".join(kept)
    part = result.shapes[new][0] / decomposition.shapes[name][0]
    rounding = part * decomposition.rounding[name][: len(result.curves[new])]
    return replace(result, rounding=result.rounding | {new: rounding})
