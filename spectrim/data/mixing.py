"""Rows of several texts in one stream, each text with its share of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spectrim.data.loading import Part
from spectrim.data.rows import all_but_first, fingerprint
from spectrim.errors import InputError

if TYPE_CHECKING:
    from spectrim.data.blocks import BlockSettings, TokenBlocks


def share_settings(parts: Sequence[Part], settings: BlockSettings) -> list[BlockSettings]:
    """Return the settings of each text. Raises InputError for a share of zero rows.

    Without shares all texts get the same; without a limit each is read to its end.
    """
    if settings.sequences is None and settings.max_tokens is None:
        if len(parts) > 1 and any(part.share is not None for part in parts):
            raise InputError(
                "shares of several texts need an amount that they are shares of; give a "
                "number of sequences or of tokens, or leave the shares out"
            )
        return [settings] * len(parts)
    shares = [1.0 if part.share is None else part.share for part in parts]
    rows, tokens = settings.sequences, settings.max_tokens
    rows_of = None if rows is None else apportion(rows, shares)
    tokens_of = None if tokens is None else apportion(tokens, shares)
    return [
        replace(
            settings,
            sequences=None if rows_of is None else rows_of[number],
            max_tokens=None if tokens_of is None else tokens_of[number],
        )
        for number in range(len(parts))
    ]


def apportion(total: int, shares: Sequence[float]) -> list[int]:
    """Return whole numbers with sum `total` in the proportion of `shares`, none of them 0.

    Raises InputError for a total below the number of shares.
    """
    if total < len(shares):
        raise InputError(
            f"{len(shares)} texts give at least one row each, asked for {total}; "
            "give more sequences or fewer texts"
        )
    exact = [total * share / sum(shares) for share in shares]
    counts = [int(value) for value in exact]
    order = sorted(range(len(shares)), key=lambda n: counts[n] - exact[n])
    for number in order[: total - sum(counts)]:
        counts[number] += 1
    while 0 in counts:
        counts[counts.index(max(counts))] -= 1
        counts[counts.index(0)] += 1
    return counts


def mix_blocks(
    blocks: Sequence[TokenBlocks], settings: BlockSettings, source: str
) -> TokenBlocks:
    """Return the rows of all texts, those of each spread evenly over the whole."""
    order = _spread([len(part) for part in blocks])
    ids = torch.cat([part.ids for part in blocks])[order]
    mask = torch.cat([_mask(part) for part in blocks])[order]
    scored = torch.cat([_scored(part) for part in blocks])[order]
    record = dict(blocks[0].settings) | asdict(settings)
    for count in ("empty_documents", "null_documents"):
        record[count] = sum(part.settings[count] for part in blocks)
    return replace(
        blocks[0],
        ids=ids,
        mask=None if mask.all() else mask,
        scored=None if scored.equal(all_but_first(mask)) else scored,
        fingerprint=fingerprint(ids, mask, scored),
        source=source,
        documents=sum(part.documents for part in blocks),
        settings=record,
    )


def _mask(part: TokenBlocks) -> Tensor:
    return torch.ones_like(part.ids, dtype=torch.bool) if part.mask is None else part.mask


def _scored(part: TokenBlocks) -> Tensor:
    return all_but_first(_mask(part)) if part.scored is None else part.scored


def _spread(counts: Sequence[int]) -> Tensor:
    places = [(torch.arange(n, dtype=torch.float64) + 0.5) / n for n in counts]
    return torch.cat(places).argsort(stable=True)
