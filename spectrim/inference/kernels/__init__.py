"""Fused operators on factors: one folder each, a readable `reference.py` beside `triton.py`.

    lowrank_matmul    left (right x) of a few tokens in one kernel, also for pivoted layers
    flash_attention   attention from the factors of q, k and v, tile by tile
    flash_ffn         a feed-forward layer from its factors, tile by tile

Each takes tensors and `Second` factors, and runs the kernel for tensors on a GPU (or where
Triton interprets, for tests), the reference elsewhere. `lowrank_matmul` has gradients; the
others are for inference, and training runs the layers themselves.
"""

from spectrim.inference.kernels.factor_spec import Second, second_of
from spectrim.inference.kernels.flash_attention import flash_attention
from spectrim.inference.kernels.flash_ffn import flash_ffn
from spectrim.inference.kernels.lowrank_matmul import lowrank_matmul

__all__ = ["Second", "flash_attention", "flash_ffn", "lowrank_matmul", "second_of"]
