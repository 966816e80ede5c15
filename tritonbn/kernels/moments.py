"""Moments of a chunk as a row of partials (partials.py), mean and M2 of all its values; those of all chunks, merged.

By Chan's rule (welford.py), for which every program knows how many values a chunk has. A chunk's mean is published in
two parts where rounding it would lose digits: what the chunk was centred on, and what was found relative to that.
"""

import triton
import triton.language as tl

from .chunk import values_before_chunk
from .exchange import last_chunk, last_of_span
from .partials import load_row, load_rows, span_of, spans_of, store_row
from .rounding import product
from .tile import add_both
from .welford import centred_moments, finite_or_zero, merge_two


def moments_of(x, _semantic=None):
    """How many numbers of each chunk and channel are merged: of 16-bit values a mean in one is as exact as they are."""
    return tl.constexpr(2 if x.base.dtype.element_ty.primitive_bitwidth == 16 else 3)


moments_of.__triton_builtin__ = True


@triton.jit
def store_moments(x, rows, row, centre, offset, M2, exchange, view):
    """Write a mean, as centre + offset, and M2 [BLOCK_C] to a row of partials."""
    if moments_of(x) == 2:
        store_row(rows, row, (centre + offset, M2), exchange, view)
    else:
        store_row(rows, row, (centre, M2, offset), exchange, view)


@triton.jit
def merge_rows(x, rows, at, first, end, STEP: tl.constexpr, exchange, holding, view, COUNT: tl.constexpr):
    """Mean, as centre and offset, and biased variance [BLOCK_C] of the rows from `first` to `end`, counted from `at`.

    Each is of STEP chunks. They are COUNT at most, and merged BLOCK_M at a time in a fixed order. Of 16-bit values both
    follow from sums about the mean of the first, which are there at once: digits are lost only where that is unlike the
    rest, at worst in proportion to how many there are.
    """
    M: tl.constexpr = COUNT if COUNT < exchange.BLOCK_M else exchange.BLOCK_M  # min is for tensors before Triton 3.6
    reference = finite_or_zero(load_row(rows, 0, at + first, exchange, view))
    mean, variance, total = tl.zeros_like(reference), tl.zeros_like(reference), tl.zeros_like(reference)
    for before in range(0, COUNT, M):
        begin = tl.minimum(first + before, end)
        here = values_of_rows(begin, tl.minimum(begin + M, end), STEP, exchange, holding, view)
        k = first + before + tl.arange(0, M)
        share = values_of_rows(tl.minimum(k, end), tl.minimum(k + 1, end), STEP, exchange, holding, view)
        share = (share / tl.maximum(here, 1.0))[:, None]
        M2 = load_rows(rows, 1, at + k, at + end, exchange, view)
        delta = load_rows(rows, 0, at + k, at + end, exchange, view) - reference[None, :]
        if moments_of(x) == 3:
            delta += load_rows(rows, 2, at + k, at + end, exchange, view)
        exists = (k < end)[:, None]
        delta = tl.where(exists, delta, 0.0)
        if moments_of(x) == 2:
            square = product(M2, 1.0 / tl.maximum(here, 1.0)) + product(product(delta, delta), share)
            part_mean, part_square = tl.reduce((product(delta, share), square), 0, add_both)
            part_mean, part_variance = centred_moments(part_mean, part_square, 1.0)  # of shares: they are one in all
        else:
            part_mean = tl.sum(product(delta, share), 0)
            delta = tl.where(exists, delta - part_mean[None, :], 0.0)
            part_variance = tl.sum(M2 / tl.maximum(here, 1.0) + delta * delta * share, 0)
        if COUNT == M:
            mean, variance = part_mean, part_variance
        else:
            mean, variance, total = merge_two(mean, variance, total, part_mean, part_variance, here)
    return reference, mean, variance


@triton.jit
def values_of_rows(begin, end, STEP: tl.constexpr, exchange, holding, view):
    """How many values of one channel the rows from `begin` to `end` are of, each of STEP chunks."""
    chunks = exchange.chunks
    behind = values_before_chunk(tl.minimum(end * STEP, chunks).to(view.INDEX), chunks, view, holding)
    before = values_before_chunk(tl.minimum(begin * STEP, chunks).to(view.INDEX), chunks, view, holding)
    return (behind - before).to(view.ACCUMULATOR)


@triton.jit
def last_to_merge(x, rows, item, exchange, holding, view):
    """Whether this chunk's moments, which it has stored, are its block's last; the last of a span merges the span."""
    if spans_of(exchange):
        last = last_of_span(item, exchange)
        if last:
            begin, end = span_of(item.chunk, exchange)
            centre, offset, variance = merge_rows(x, rows, 0, begin, end, 1, exchange, holding, view, exchange.SPAN)
            M2 = variance * values_of_rows(begin, end, 1, exchange, holding, view)
            row = exchange.BLOCK_K + item.chunk // exchange.SPAN
            store_moments(x, rows, row, centre, offset, M2, exchange, view)
            last = last_chunk(item, tl.cdiv(exchange.chunks, exchange.SPAN), exchange)
    else:
        last = last_chunk(item, exchange.chunks, exchange)
    return last


@triton.jit
def merge_chunks(x, rows, exchange, holding, view):
    """Mean, as centre and offset, and biased variance [BLOCK_C] of all chunks."""
    if spans_of(exchange):
        spans = tl.cdiv(exchange.chunks, exchange.SPAN)
        merged = merge_rows(
            x, rows, exchange.BLOCK_K, 0, spans, exchange.SPAN, exchange, holding, view, spans_of(exchange)
        )
    else:
        merged = merge_rows(x, rows, 0, 0, exchange.chunks, 1, exchange, holding, view, exchange.BLOCK_K)
    return merged
