"""Welford statistics in blocks: the mean and M2 of a chunk from centred values, chunks merged by Chan's rule.

Chan, Golub and LeVeque, "Algorithms for computing the sample variance" (1983). A chunk in registers is centred on its
own mean, one of which only a part is there on that part's. Of one that is read tile after tile the first tile's mean
serves all: digits are lost only where that part is unlike the rest, at worst in proportion to how much more there is.
Parts merge as M2 = M2_a + M2_b + delta^2 n_a n_b / n, here for all chunks of a channel at once. A chunk's mean is
published in two parts, the centre and what was found relative to it: one far above the deviation costs no digits.
"""

import triton
import triton.language as tl

from .exchange import last_chunk, last_of_span
from .partials import load_rows, span_of, store_row
from .rounding import quotient
from .view import channel_sum, spread, sum_to_edges


@triton.jit
def finite_or_zero(value):
    """A centre has to be finite; with zero instead, inf and NaN reach mean and M2 just as plain sums carry them."""
    return tl.where(tl.abs(value) < float("inf"), value, 0.0)


@triton.jit
def mean_of(
    tiles, edges, count,
    ACCUMULATOR: tl.constexpr, CHANNELS_LAST: tl.constexpr, FOLD: tl.constexpr, RUN: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The mean [BLOCK_C] of tiles with `count` values a channel, edges (edges.py) included, and zeros elsewhere.

    Without overflow, since values are scaled down before they are added where they might.
    Of 16-bit values that lie far from zero beside their deviation the sum is exact, so the mean is rounded once.
    """
    IS_HALF: tl.constexpr = tiles[0].dtype == tl.float16
    MOST: tl.constexpr = triton.next_power_of_2(len(tiles) + len(edges)) * tiles[0].shape[1] * tiles[0].shape[2]
    share: tl.constexpr = 1.0 if IS_HALF else 1.0 / MOST  # a power of two: nothing is rounded
    total = tiles[0].to(ACCUMULATOR) * share
    for t in tl.static_range(1, len(tiles)):
        total += tiles[t].to(ACCUMULATOR) * share
    if len(edges) > 0:
        total = sum_to_edges(total, edges[0].shape[2])
        for t in tl.static_range(len(edges)):
            total += edges[t].to(ACCUMULATOR) * share
    return quotient(channel_sum(total, CHANNELS_LAST, FOLD, RUN, BLOCK_C), count * share)


@triton.jit
def needs_offset(x, TOGETHER: tl.constexpr):
    """Whether the mean of what is held is not the chunk's: where it holds less, and where rounding it loses digits.

    So float32 and float64 do; of 16-bit values the mean is as exact as they are.
    """
    return tl.constexpr(TOGETHER > 0 or x.dtype.element_ty.primitive_bitwidth > 16)


@triton.jit
def centre_of(mean, x, TOGETHER: tl.constexpr):
    """What a chunk is centred on, from the mean of what is held; of 16-bit values inf and NaN get that far."""
    centre = mean
    if needs_offset(x, TOGETHER):
        centre = finite_or_zero(mean)
    return centre


@triton.jit
def sums_about(
    centre, tiles, masks,
    ACCUMULATOR: tl.constexpr, CHANNELS_LAST: tl.constexpr, FOLD: tl.constexpr, RUN: tl.constexpr,
    BLOCK_I: tl.constexpr,
):  # fmt: skip
    """The sums of (value - centre) and of its square over these tiles, element by element."""
    wide_centre = spread(centre, CHANNELS_LAST, FOLD, RUN, BLOCK_I)
    deviation = tiles[0].to(ACCUMULATOR) - tl.where(masks[0], wide_centre, 0.0)
    squares = deviation * deviation
    for t in tl.static_range(1, len(tiles)):
        further = tiles[t].to(ACCUMULATOR) - tl.where(masks[t], wide_centre, 0.0)
        squares += further * further
        deviation += further
    return deviation, squares


@triton.jit
def moments_about(
    deviation, squares, count, x, TOGETHER: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, FOLD: tl.constexpr, RUN: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A chunk's mean less its centre, and M2, from what sums_about found of all its tiles."""
    M2 = channel_sum(squares, CHANNELS_LAST, FOLD, RUN, BLOCK_C)
    offset = tl.zeros_like(M2)
    if needs_offset(x, TOGETHER):
        offset, M2 = centred_moments(channel_sum(deviation, CHANNELS_LAST, FOLD, RUN, BLOCK_C), M2, count)
    return offset, M2


@triton.jit
def centred_moments(deviation, squares, count):
    """Mean minus centre, and M2, from the sums of (value - centre) and of its square."""
    offset = deviation / count
    M2 = squares - tl.where(squares < float("inf"), offset * offset * count, 0.0)  # inf stays inf
    return offset, tl.where(M2 < 0, 0.0, M2)


@triton.jit
def store_moments(rows, row, c, channels, centre, offset, M2, count):
    """Write a mean, as centre + offset, M2 [BLOCK_C] and a number of values to a row of partials."""
    numbers = tl.join(tl.join(centre, M2), tl.join(offset, tl.zeros_like(M2) + count))
    store_row(rows, row, c, channels, tl.reshape(numbers, [M2.shape[0], 4]))


@triton.jit
def load_moments(rows, k, end, c, channels):
    """Centre, offset, M2 and number of values [k, BLOCK_C] of the rows k, zero from `end` on."""
    numbers = load_rows(rows, k, end, c, channels, 4)
    first, second = tl.split(tl.reshape(numbers, [k.shape[0], c.shape[0], 2, 2]))
    centre, M2 = tl.split(first)
    offset, count = tl.split(second)
    return centre, offset, M2, count


@triton.jit
def merge_rows(rows, first, end, c, channels, COUNT: tl.constexpr, BLOCK_M: tl.constexpr):
    """Mean, as centre and offset, biased variance and number of values [BLOCK_C] of the rows from `first` to `end`.

    They are COUNT at most, and merged BLOCK_M at a time in a fixed order.
    """
    M: tl.constexpr = COUNT if COUNT < BLOCK_M else BLOCK_M  # min and max are for tensors before Triton 3.6
    BLOCK_C: tl.constexpr = c.shape[0]
    first_centre = rows + (first * BLOCK_C + tl.arange(0, BLOCK_C)) * 4
    reference = finite_or_zero(tl.load(first_centre, c < channels, other=0.0))
    mean, variance, total = tl.zeros_like(reference), tl.zeros_like(reference), tl.zeros_like(reference)
    for before in range(0, COUNT, M):
        k = first + before + tl.arange(0, M)
        centre, offset, M2, count = load_moments(rows, k, end, c, channels)
        here = tl.sum(count, 0)
        share = count / tl.maximum(here, 1.0)[None, :]
        delta = tl.where((k < end)[:, None], centre - reference[None, :] + offset, 0.0)
        part_mean = tl.sum(delta * share, 0)
        delta = tl.where((k < end)[:, None], delta - part_mean[None, :], 0.0)
        part_variance = tl.sum(M2, 0) / tl.maximum(here, 1.0) + tl.sum(delta * delta * share, 0)
        mean, variance, total = merge_two(mean, variance, total, part_mean, part_variance, here)
    return reference, mean, variance, total


@triton.jit
def last_to_merge(
    rows, counters, c, channels, block, blocks, chunk, chunks,
    BLOCK_K: tl.constexpr, SPAN: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Whether this chunk's moments, which it has stored, are its block's last; the last of a span merges the span."""
    if SPAN < BLOCK_K:
        last = last_of_span(counters, block, blocks, chunk, chunks, BLOCK_K, SPAN)
        if last:
            begin, end = span_of(chunk, chunks, SPAN)
            centre, offset, variance, total = merge_rows(rows, begin, end, c, channels, SPAN, BLOCK_M)
            store_moments(rows, BLOCK_K + chunk // SPAN, c, channels, centre, offset, variance * total, total)
            last = last_chunk(counters, block, tl.cdiv(chunks, SPAN))
    else:
        last = last_chunk(counters, block, chunks)
    return last


@triton.jit
def merge_chunks(rows, c, channels, chunks, BLOCK_K: tl.constexpr, SPAN: tl.constexpr, BLOCK_M: tl.constexpr):
    """Mean, as centre and offset, and biased variance [BLOCK_C] of all chunks."""
    if SPAN < BLOCK_K:
        end = BLOCK_K + tl.cdiv(chunks, SPAN)
        centre, offset, variance, _ = merge_rows(rows, BLOCK_K, end, c, channels, BLOCK_K // SPAN, BLOCK_M)
    else:
        centre, offset, variance, _ = merge_rows(rows, 0, chunks, c, channels, BLOCK_K, BLOCK_M)
    return centre, offset, variance


@triton.jit
def merge_two(mean, variance, total, part_mean, part_variance, here):
    """Mean, biased variance and number of values with those of a part that has `here` of them."""
    total += here
    weight = here / tl.maximum(total, 1.0)
    step = part_mean - mean
    variance = variance * (1.0 - weight) + part_variance * weight  # where both are inf so is the result
    return mean + step * weight, variance + step * weight * (step * (1.0 - weight)), total


@triton.jit
def merge_parts(part_mean, part_M2, count, total, AXIS: tl.constexpr):
    """Mean and biased variance of parts that lie along one axis, each of `count` values of `total`; keeps the axis."""
    share = count / total
    mean = tl.sum(part_mean * share, AXIS, keep_dims=True)
    delta = part_mean - mean
    return mean, tl.sum(part_M2 / total + delta * delta * share, AXIS, keep_dims=True)


@triton.jit
def welford_step(mean, M2, value, count):
    """Mean and M2 of every lane with one more value, its `count`-th (Welford, 1962); value = mean changes nothing."""
    delta = value - mean
    mean += delta * (1.0 / tl.cast(count, mean.dtype))
    return mean, M2 + delta * (value - mean)
