"""Codes of any width without gaps, and back."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from spectrim.layers.quantized._packing import pack_codes, packed_bytes, unpack_codes


@st.composite
def codes_of_a_width(draw):
    bits = draw(st.integers(1, 8))
    codes = draw(st.lists(st.integers(0, 2**bits - 1), max_size=50))
    return bits, torch.tensor(codes, dtype=torch.uint8)


@given(codes_of_a_width())
def test_packing_and_back(case):
    bits, codes = case
    packed = pack_codes(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.numel() == packed_bytes(codes.numel(), bits)
    assert torch.equal(unpack_codes(packed, bits, codes.numel()), codes)


def test_three_bits_cross_bytes():
    """Eight 3-bit codes are one 24-bit number, the first code lowest."""
    codes = torch.tensor([1, 2, 3, 4, 5, 6, 7, 0])
    word = sum(int(code) << (3 * place) for place, code in enumerate(codes))
    assert pack_codes(codes, 3).tolist() == list(word.to_bytes(3, "little"))


def test_bytes_without_gaps():
    assert [packed_bytes(n, 3) for n in (0, 1, 8, 9, 64)] == [0, 3, 3, 6, 24]
