"""Full-width activations that are never written: attention and feed-forward in tiles.

Between a factored layer and what needs its whole output stand mostly calls that work on each
token for itself (an activation, a product of gate and up, a residual, a norm), and attention,
which works on each head. The layer's output waits as an expression of z, of rank r; a tile of
256 tokens, or a few heads of a row, goes through all of it at once and stays in the cache.

    tile        ranges of rows, tokens, heads and features
    nodes       expressions, evaluated tile by tile
    second      a layer's output from z
    embedding   rows of a table
    attention   softmax(q k^T) v by rows and heads
    operations  which calls can wait
    results     the shapes of what they give
    kernels     those that Triton's kernels make
    tensor      the stand-in that models work with
    wiring      who makes one, and who makes the whole
"""

from spectrim.inference.tiling.hooks import Tiling
from spectrim.inference.tiling.lazy_tensor import LazyTensor, materialize

__all__ = ["LazyTensor", "Tiling", "materialize"]
