"""Attention and feed-forward in tiles, without writing activations of full width.

Between a factored layer and the first operation that needs its whole output stand mostly
operations on single tokens (an activation, a product of gate and up, a residual, a norm), and
attention, which works on single heads. The layer's output is deferred as an expression of z, of
rank r; a tile of 256 tokens, or a few heads of a row, goes through the whole expression at once
and stays in the cache.

    tile            ranges of rows, tokens, heads and features
    nodes           expressions, evaluated tile by tile
    output_factor   a layer's output from z
    embedding       rows of a table
    attention       softmax(q k^T) v by rows and heads
    operations      which calls can be deferred
    shapes          the shapes of their results
    kernels         expressions that Triton kernels compute
    lazy_tensor     the tensor subclass that models operate on
    hooks           where outputs are deferred, and where they are computed
"""

from spectrim.inference.tiling.hooks import Tiling
from spectrim.inference.tiling.lazy_tensor import LazyTensor, materialize

__all__ = ["LazyTensor", "Tiling", "materialize"]
