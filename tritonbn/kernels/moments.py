"""Moments of a chunk as a row of partials (partials.py): mean, as centre and offset, M2, number of values; all merged.

By Chan's rule (welford.py). A chunk's mean is published in two parts, the centre and what was found relative to it: one
far above the deviation costs no digits.
"""

import triton
import triton.language as tl

from .exchange import last_chunk, last_of_span
from .partials import load_row, load_rows, span_of, spans_of, store_row
from .welford import finite_or_zero, merge_two


@triton.jit
def store_moments(rows, row, centre, offset, M2, count, c, exchange, view):
    """Write a mean, as centre + offset, M2 [BLOCK_C] and a number of values to a row of partials."""
    store_row(rows, row, (centre, offset, M2, tl.zeros_like(M2) + count), c, exchange, view)


@triton.jit
def merge_rows(rows, first, end, c, exchange, view, COUNT: tl.constexpr):
    """Mean, as centre and offset, biased variance and number of values [BLOCK_C] of the rows from `first` to `end`.

    They are COUNT at most, and merged BLOCK_M at a time in a fixed order.
    """
    M: tl.constexpr = COUNT if COUNT < exchange.BLOCK_M else exchange.BLOCK_M  # min is for tensors before Triton 3.6
    reference = finite_or_zero(load_row(rows, 0, first, c, exchange, view))
    mean, variance, total = tl.zeros_like(reference), tl.zeros_like(reference), tl.zeros_like(reference)
    for before in range(0, COUNT, M):
        k = first + before + tl.arange(0, M)
        centre, offset = load_rows(rows, 0, k, end, c, exchange, view), load_rows(rows, 1, k, end, c, exchange, view)
        M2, count = load_rows(rows, 2, k, end, c, exchange, view), load_rows(rows, 3, k, end, c, exchange, view)
        here = tl.sum(count, 0)
        share = count / tl.maximum(here, 1.0)[None, :]
        delta = tl.where((k < end)[:, None], centre - reference[None, :] + offset, 0.0)
        part_mean = tl.sum(delta * share, 0)
        delta = tl.where((k < end)[:, None], delta - part_mean[None, :], 0.0)
        part_variance = tl.sum(M2 / tl.maximum(here, 1.0)[None, :] + delta * delta * share, 0)
        mean, variance, total = merge_two(mean, variance, total, part_mean, part_variance, here)
    return reference, mean, variance, total


@triton.jit
def last_to_merge(rows, item, exchange, view):
    """Whether this chunk's moments, which it has stored, are its block's last; the last of a span merges the span."""
    if spans_of(exchange):
        last = last_of_span(item, exchange)
        if last:
            row, c = exchange.BLOCK_K + item.chunk // exchange.SPAN, item.c
            begin, end = span_of(item.chunk, exchange)
            centre, offset, variance, total = merge_rows(rows, begin, end, c, exchange, view, exchange.SPAN)
            store_moments(rows, row, centre, offset, variance * total, total, c, exchange, view)
            last = last_chunk(item, tl.cdiv(exchange.chunks, exchange.SPAN), exchange)
    else:
        last = last_chunk(item, exchange.chunks, exchange)
    return last


@triton.jit
def merge_chunks(rows, c, exchange, view):
    """Mean, as centre and offset, and biased variance [BLOCK_C] of all chunks."""
    first, end = 0, exchange.chunks
    COUNT: tl.constexpr = spans_of(exchange) if spans_of(exchange) else exchange.BLOCK_K
    if spans_of(exchange):
        first, end = exchange.BLOCK_K, exchange.BLOCK_K + tl.cdiv(exchange.chunks, exchange.SPAN)
    centre, offset, variance, _ = merge_rows(rows, first, end, c, exchange, view, COUNT)
    return centre, offset, variance
