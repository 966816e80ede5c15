"""Sums of a chunk, two for each channel, as a row of partials (partials.py); and those of all chunks, added up."""

import triton
import triton.language as tl

from .exchange import last_chunk, last_of_span
from .partials import load_rows, span_of, spans_of, store_row


@triton.jit
def add_rows(rows, begin, end, exchange, view, COUNT: tl.constexpr):
    """Both sums [BLOCK_C] over the rows from `begin` to `end`, COUNT at most, BLOCK_M at a time in a fixed order."""
    M: tl.constexpr = COUNT if COUNT < exchange.BLOCK_M else exchange.BLOCK_M  # min is for tensors before Triton 3.6
    first, second = tl.zeros([M, view.BLOCK_C], view.ACCUMULATOR), tl.zeros([M, view.BLOCK_C], view.ACCUMULATOR)
    for before in range(0, COUNT, M):
        k = begin + before + tl.arange(0, M)
        first += load_rows(rows, 0, k, end, exchange, view)
        second += load_rows(rows, 1, k, end, exchange, view)
    return tl.sum(first, 0), tl.sum(second, 0)


@triton.jit
def last_to_add(rows, item, exchange, view):
    """Whether this chunk's sums, which it has stored, are its block's last; the last of a span adds up the span."""
    if spans_of(exchange):
        last = last_of_span(item, exchange)
        if last:
            begin, end = span_of(item.chunk, exchange)
            first, second = add_rows(rows, begin, end, exchange, view, exchange.SPAN)
            row = exchange.BLOCK_K + item.chunk // exchange.SPAN
            store_row(rows, row, (first, second), exchange, view)
            last = last_chunk(item, tl.cdiv(exchange.chunks, exchange.SPAN), exchange)
    else:
        last = last_chunk(item, exchange.chunks, exchange)
    return last


@triton.jit
def add_sums(rows, exchange, view):
    """Both sums [BLOCK_C] over all chunks."""
    if spans_of(exchange):
        end = exchange.BLOCK_K + tl.cdiv(exchange.chunks, exchange.SPAN)
        total = add_rows(rows, exchange.BLOCK_K, end, exchange, view, spans_of(exchange))
    else:
        total = add_rows(rows, 0, exchange.chunks, exchange, view, exchange.BLOCK_K)
    return total
