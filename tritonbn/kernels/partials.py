"""Partial results: a row of numbers for each chunk of a block of channels, merged by one program in a fixed order.

partials are (blocks, rows, BLOCK_C, n): the rows of a block are those of its BLOCK_K chunks, two at least. Of many
chunks the last of each SPAN neighbours to arrive merges these into one more row, and the last of all merges the spans:
so nobody is waited for while it merges hundreds. Otherwise SPAN is BLOCK_K. Who has merged a block publishes what
follows in its first row, which nobody reads any more. What rows hold is in moments.py and sums.py.
"""

import triton
import triton.language as tl


def spans_of(exchange, _semantic=None):
    """How many spans a block has room for; 0 if its chunks are merged at once."""
    return tl.constexpr(exchange.BLOCK_K // exchange.SPAN if exchange.SPAN < exchange.BLOCK_K else 0)


spans_of.__triton_builtin__ = True  # known while the kernel is compiled, which Triton 3.6 does not let @jit return


@triton.jit
def rows_of(block, n: tl.constexpr, exchange, view):
    """Where the rows of a block begin; of the block behind the last, where all end, what ranks.py sends."""
    CHUNKS: tl.constexpr = exchange.BLOCK_K if exchange.BLOCK_K > 2 else 2
    ROWS: tl.constexpr = CHUNKS + spans_of(exchange)
    return exchange.partials + tl.cast(block, view.INDEX) * (ROWS * view.BLOCK_C * n)


@triton.jit
def store_row(rows, row, c, view, numbers):
    """Write the numbers [BLOCK_C, n] of a row."""
    n: tl.constexpr = numbers.shape[1]
    at = tl.arange(0, view.BLOCK_C)[:, None] * n + tl.arange(0, n)[None, :]
    tl.store(rows + row * (view.BLOCK_C * n) + at, numbers, (c < view.channels)[:, None])


@triton.jit
def load_rows(rows, k, end, c, view, n: tl.constexpr):
    """The numbers [k, BLOCK_C, n] of the rows k, zero from `end` on."""
    at = tl.arange(0, view.BLOCK_C)[None, :, None] * n + tl.arange(0, n)[None, None, :]
    exists = (k < end)[:, None, None] & (c < view.channels)[None, :, None]
    return tl.load(rows + k[:, None, None] * (view.BLOCK_C * n) + at, exists, other=0.0)


@triton.jit
def span_of(chunk, exchange):
    """The first chunk of the span of a chunk, and the one after its last."""
    first = chunk // exchange.SPAN * exchange.SPAN
    return first, tl.minimum(first + exchange.SPAN, exchange.chunks)
