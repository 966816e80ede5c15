"""Partial results: numbers of each chunk of a block of channels, merged by one program in a fixed order.

partials are (blocks, n, rows, BLOCK_C): of n quantities a row for each of the block's BLOCK_K chunks, two at least. Of
many chunks the last of each SPAN neighbours to arrive merges these into one more row, and the last of all merges the
spans: so nobody is waited for while it merges hundreds. Otherwise SPAN is BLOCK_K. When a block's rows are merged, its
first two are free for what follows from them. What the quantities are is in moments.py and sums.py.
"""

import triton
import triton.language as tl


def spans_of(exchange, _semantic=None):
    """How many spans a block has room for; 0 if its chunks are merged at once."""
    return tl.constexpr(exchange.BLOCK_K // exchange.SPAN if exchange.SPAN < exchange.BLOCK_K else 0)


spans_of.__triton_builtin__ = True  # known while the kernel is compiled, which Triton 3.6 does not let @jit return


def numbers_of(exchange, view, _semantic=None):
    """How many numbers of one quantity a block has room for."""
    chunks = exchange.BLOCK_K if exchange.BLOCK_K > 2 else 2
    return tl.constexpr((chunks + spans_of(exchange)) * view.BLOCK_C)


numbers_of.__triton_builtin__ = True


@triton.jit
def rows_of(block, n: tl.constexpr, exchange, view):
    """Where the rows of a block begin; of the block behind the last, where all end, what ranks.py sends."""
    return exchange.partials + tl.cast(block, tl.int64) * (n * numbers_of(exchange, view))


@triton.jit
def store_row(rows, row, numbers, exchange, view):
    """Write a row: of each of one to three quantities the numbers [BLOCK_C]."""
    at = row * view.BLOCK_C + tl.arange(0, view.BLOCK_C)
    PAIRED: tl.constexpr = 2 if view.BLOCK_C > 1 and len(numbers) > 1 else 0
    if PAIRED:  # as one tensor, which takes as many barriers as one of them to be laid out for the store
        n = tl.arange(0, 2)[None, :] * numbers_of(exchange, view)
        tl.store(rows + n + at[:, None], tl.join(numbers[0], numbers[1]))
    for n in tl.static_range(PAIRED, len(numbers)):
        tl.store(rows + n * numbers_of(exchange, view) + at, numbers[n])


@triton.jit
def store_result(rows, row, numbers, exchange, view):
    """Write what follows from a block's merged rows over one of them, once every warp has read it."""
    tl.debug_barrier()
    store_row(rows, row, numbers, exchange, view)


@triton.jit
def load_rows(rows, n: tl.constexpr, k, end, exchange, view):
    """The numbers [k, BLOCK_C] of the n-th quantity in the rows k, zero from `end` on."""
    at = k[:, None] * view.BLOCK_C + tl.arange(0, view.BLOCK_C)[None, :]
    return tl.load(rows + n * numbers_of(exchange, view) + at, (k < end)[:, None], other=0.0)


@triton.jit
def load_row(rows, n: tl.constexpr, row, exchange, view):
    """The numbers [BLOCK_C] of the n-th quantity in one row."""
    return tl.load(rows + n * numbers_of(exchange, view) + row * view.BLOCK_C + tl.arange(0, view.BLOCK_C))


@triton.jit
def load_first_pair(rows, exchange, view):
    """Both quantities [BLOCK_C] of the first row."""
    return load_row(rows, 0, 0, exchange, view), load_row(rows, 1, 0, exchange, view)


@triton.jit
def span_of(chunk, exchange):
    """The first chunk of the span of a chunk, and the one after its last."""
    first = chunk // exchange.SPAN * exchange.SPAN
    return first, tl.minimum(first + exchange.SPAN, exchange.chunks)
