"""Sums of a chunk, two for each channel, as a row of partials (partials.py); and those of all chunks, added up."""

import triton
import triton.language as tl

from .exchange import last_chunk, last_of_span
from .partials import load_rows, span_of, spans_of, store_row


@triton.jit
def store_pair(rows, row, c, view, first, second):
    """Write two numbers of each channel [BLOCK_C] to a row."""
    store_row(rows, row, c, view, tl.join(first, second))


@triton.jit
def load_first_pair(rows, c, view):
    """The two numbers of each channel [BLOCK_C] back, from the first row."""
    at = tl.arange(0, view.BLOCK_C)[:, None] * 2 + tl.arange(0, 2)[None, :]
    return tl.split(tl.load(rows + at, (c < view.channels)[:, None], other=0.0))


@triton.jit
def add_rows(rows, first, end, c, view, COUNT: tl.constexpr, BLOCK_M: tl.constexpr):
    """Both sums [BLOCK_C] over the rows from `first` to `end`, COUNT at most, BLOCK_M at a time in a fixed order."""
    M: tl.constexpr = COUNT if COUNT < BLOCK_M else BLOCK_M  # min and max are for tensors before Triton 3.6
    sums = tl.zeros([M, view.BLOCK_C, 2], rows.dtype.element_ty)
    for before in range(0, COUNT, M):
        sums += load_rows(rows, first + before + tl.arange(0, M), end, c, view, 2)
    return tl.split(tl.sum(sums, 0))


@triton.jit
def last_to_add(rows, item, exchange, view):
    """Whether this chunk's sums, which it has stored, are its block's last; the last of a span adds up the span."""
    if spans_of(exchange):
        last = last_of_span(item, exchange)
        if last:
            begin, end = span_of(item.chunk, exchange)
            first, second = add_rows(rows, begin, end, item.c, view, exchange.SPAN, exchange.BLOCK_M)
            store_pair(rows, exchange.BLOCK_K + item.chunk // exchange.SPAN, item.c, view, first, second)
            last = last_chunk(item, tl.cdiv(exchange.chunks, exchange.SPAN), exchange)
    else:
        last = last_chunk(item, exchange.chunks, exchange)
    return last


@triton.jit
def add_sums(rows, c, exchange, view):
    """Both sums [BLOCK_C] over all chunks."""
    if spans_of(exchange):
        end = exchange.BLOCK_K + tl.cdiv(exchange.chunks, exchange.SPAN)
        total = add_rows(rows, exchange.BLOCK_K, end, c, view, spans_of(exchange), exchange.BLOCK_M)
    else:
        total = add_rows(rows, 0, exchange.chunks, c, view, exchange.BLOCK_K, exchange.BLOCK_M)
    return total
