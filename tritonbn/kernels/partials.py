"""Partial results: a row of numbers for each chunk of a block of channels, merged by one program in a fixed order.

partials are (blocks, rows, BLOCK_C, n): the rows of a block are those of its BLOCK_K chunks. Of many chunks the last of
each SPAN neighbours to arrive merges these into one more row, and the last of all merges the spans: so nobody is waited
for while it merges hundreds. Otherwise SPAN is BLOCK_K. Who has merged a block publishes what follows in its first row,
which nobody reads any more.
"""

import triton
import triton.language as tl

from .exchange import last_chunk, last_of_span


@triton.jit
def rows_of(
    partials, block,
    BLOCK_K: tl.constexpr, SPAN: tl.constexpr, BLOCK_C: tl.constexpr, n: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """Where the rows of a block begin; of the block behind the last, where all end: well aligned (cutting.py)."""
    ROWS: tl.constexpr = (BLOCK_K if BLOCK_K > 2 else 2) + (BLOCK_K // SPAN if SPAN < BLOCK_K else 0)
    return partials + tl.cast(block, INDEX) * (ROWS * BLOCK_C * n)


@triton.jit
def store_row(rows, row, c, channels, numbers):
    """Write the numbers [BLOCK_C, n] of a row."""
    BLOCK_C: tl.constexpr = numbers.shape[0]
    n: tl.constexpr = numbers.shape[1]
    at = tl.arange(0, BLOCK_C)[:, None] * n + tl.arange(0, n)[None, :]
    tl.store(rows + row * (BLOCK_C * n) + at, numbers, (c < channels)[:, None])


@triton.jit
def load_rows(rows, k, end, c, channels, n: tl.constexpr):
    """The numbers [k, BLOCK_C, n] of the rows k, zero from `end` on."""
    BLOCK_C: tl.constexpr = c.shape[0]
    at = tl.arange(0, BLOCK_C)[None, :, None] * n + tl.arange(0, n)[None, None, :]
    exists = (k < end)[:, None, None] & (c < channels)[None, :, None]
    return tl.load(rows + k[:, None, None] * (BLOCK_C * n) + at, exists, other=0.0)


@triton.jit
def span_of(chunk, chunks, SPAN: tl.constexpr):
    """The first chunk of the span of a chunk, and the one after its last."""
    first = chunk // SPAN * SPAN
    return first, tl.minimum(first + SPAN, chunks)


@triton.jit
def store_pair(rows, row, c, channels, first, second):
    """Write two numbers of each channel [BLOCK_C] to a row."""
    store_row(rows, row, c, channels, tl.join(first, second))


@triton.jit
def load_pair(rows, row, c, channels):
    """The two numbers of each channel [BLOCK_C] back."""
    at = tl.arange(0, c.shape[0])[:, None] * 2 + tl.arange(0, 2)[None, :]
    return tl.split(tl.load(rows + row * (c.shape[0] * 2) + at, (c < channels)[:, None], other=0.0))


@triton.jit
def add_rows(rows, first, end, c, channels, COUNT: tl.constexpr, BLOCK_M: tl.constexpr):
    """Both sums [BLOCK_C] over the rows from `first` to `end`, COUNT at most, BLOCK_M at a time in a fixed order."""
    M: tl.constexpr = COUNT if COUNT < BLOCK_M else BLOCK_M  # min and max are for tensors before Triton 3.6
    sums = tl.zeros([M, c.shape[0], 2], rows.dtype.element_ty)
    for before in range(0, COUNT, M):
        sums += load_rows(rows, first + before + tl.arange(0, M), end, c, channels, 2)
    return tl.split(tl.sum(sums, 0))


@triton.jit
def last_to_add(
    rows, counters, c, channels, block, blocks, chunk, chunks,
    BLOCK_K: tl.constexpr, SPAN: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Whether this chunk's sums, which it has stored, are its block's last; the last of a span adds up the span."""
    if SPAN < BLOCK_K:
        last = last_of_span(counters, block, blocks, chunk, chunks, BLOCK_K, SPAN)
        if last:
            begin, end = span_of(chunk, chunks, SPAN)
            first, second = add_rows(rows, begin, end, c, channels, SPAN, BLOCK_M)
            store_pair(rows, BLOCK_K + chunk // SPAN, c, channels, first, second)
            last = last_chunk(counters, block, tl.cdiv(chunks, SPAN))
    else:
        last = last_chunk(counters, block, chunks)
    return last


@triton.jit
def add_sums(rows, c, channels, chunks, BLOCK_K: tl.constexpr, SPAN: tl.constexpr, BLOCK_M: tl.constexpr):
    """Both sums [BLOCK_C] over all chunks."""
    if SPAN < BLOCK_K:
        total = add_rows(rows, BLOCK_K, BLOCK_K + tl.cdiv(chunks, SPAN), c, channels, BLOCK_K // SPAN, BLOCK_M)
    else:
        total = add_rows(rows, 0, chunks, c, channels, BLOCK_K, BLOCK_M)
    return total
