"""Partial results: numbers of each chunk of a block of channels, merged by one program in a fixed order.

partials are (blocks, n, rows, BLOCK_C): of n quantities a row for each of the block's BLOCK_K chunks, two at least. Of
many chunks the last of each SPAN neighbours to arrive merges these into one more row, and the last of all merges the
spans: so nobody is waited for while it merges hundreds. Otherwise SPAN is BLOCK_K. When a block's rows are merged, its
first one is free for what follows from them. What the quantities are is in moments.py and sums.py.
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
    return exchange.partials + tl.cast(block, view.INDEX) * (n * numbers_of(exchange, view))


@triton.jit
def store_row(rows, row, numbers, c, exchange, view):
    """Write a row: of each of two or four quantities the numbers [BLOCK_C]."""
    at = row * view.BLOCK_C + tl.arange(0, view.BLOCK_C)
    if view.BLOCK_C == 1:
        for n in tl.static_range(len(numbers)):
            tl.store(rows + n * numbers_of(exchange, view) + at, numbers[n], c < view.channels)
    else:  # as one tensor, which takes as many barriers as one of them to be laid out for the store
        if len(numbers) == 2:
            all_numbers = tl.join(numbers[0], numbers[1])
        else:
            pairs = tl.join(tl.join(numbers[0], numbers[2]), tl.join(numbers[1], numbers[3]))
            all_numbers = tl.reshape(pairs, [view.BLOCK_C, 4])
        n = tl.arange(0, len(numbers))[None, :] * numbers_of(exchange, view)
        tl.store(rows + n + at[:, None], all_numbers, (c < view.channels)[:, None])


@triton.jit
def load_rows(rows, n: tl.constexpr, k, end, c, exchange, view):
    """The numbers [k, BLOCK_C] of the n-th quantity in the rows k, zero from `end` on."""
    at = k[:, None] * view.BLOCK_C + tl.arange(0, view.BLOCK_C)[None, :]
    exists = (k < end)[:, None] & (c < view.channels)[None, :]
    return tl.load(rows + n * numbers_of(exchange, view) + at, exists, other=0.0)


@triton.jit
def load_row(rows, n: tl.constexpr, row, c, exchange, view):
    """The numbers [BLOCK_C] of the n-th quantity in one row."""
    at = row * view.BLOCK_C + tl.arange(0, view.BLOCK_C)
    return tl.load(rows + n * numbers_of(exchange, view) + at, c < view.channels, other=0.0)


@triton.jit
def span_of(chunk, exchange):
    """The first chunk of the span of a chunk, and the one after its last."""
    first = chunk // exchange.SPAN * exchange.SPAN
    return first, tl.minimum(first + exchange.SPAN, exchange.chunks)
