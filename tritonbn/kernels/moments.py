"""Moments of a chunk as a row of partials (partials.py): mean, as centre and offset, M2, number of values; all merged.

By Chan's rule (welford.py). A chunk's mean is published in two parts, the centre and what was found relative to it: one
far above the deviation costs no digits.
"""

import triton
import triton.language as tl

from .exchange import last_chunk, last_of_span
from .partials import load_rows, span_of, spans_of, store_row
from .welford import finite_or_zero, merge_two


@triton.jit
def store_moments(rows, row, c, view, centre, offset, M2, count):
    """Write a mean, as centre + offset, M2 [BLOCK_C] and a number of values to a row of partials."""
    numbers = tl.join(tl.join(centre, M2), tl.join(offset, tl.zeros_like(M2) + count))
    store_row(rows, row, c, view, tl.reshape(numbers, [M2.shape[0], 4]))


@triton.jit
def load_moments(rows, k, end, c, view):
    """Centre, offset, M2 and number of values [k, BLOCK_C] of the rows k, zero from `end` on."""
    numbers = load_rows(rows, k, end, c, view, 4)
    first, second = tl.split(tl.reshape(numbers, [k.shape[0], c.shape[0], 2, 2]))
    centre, M2 = tl.split(first)
    offset, count = tl.split(second)
    return centre, offset, M2, count


@triton.jit
def merge_rows(rows, first, end, c, view, COUNT: tl.constexpr, BLOCK_M: tl.constexpr):
    """Mean, as centre and offset, biased variance and number of values [BLOCK_C] of the rows from `first` to `end`.

    They are COUNT at most, and merged BLOCK_M at a time in a fixed order.
    """
    M: tl.constexpr = COUNT if COUNT < BLOCK_M else BLOCK_M  # min and max are for tensors before Triton 3.6
    first_centre = rows + (first * view.BLOCK_C + tl.arange(0, view.BLOCK_C)) * 4
    reference = finite_or_zero(tl.load(first_centre, c < view.channels, other=0.0))
    mean, variance, total = tl.zeros_like(reference), tl.zeros_like(reference), tl.zeros_like(reference)
    for before in range(0, COUNT, M):
        k = first + before + tl.arange(0, M)
        centre, offset, M2, count = load_moments(rows, k, end, c, view)
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
            centre, offset, variance, total = merge_rows(rows, begin, end, c, view, exchange.SPAN, exchange.BLOCK_M)
            store_moments(rows, row, c, view, centre, offset, variance * total, total)
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
    centre, offset, variance, _ = merge_rows(rows, first, end, c, view, COUNT, exchange.BLOCK_M)
    return centre, offset, variance
