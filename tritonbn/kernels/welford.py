"""Welford statistics in blocks: the mean and M2 of a chunk from centred values, chunks merged by Chan's rule.

Chan, Golub and LeVeque, "Algorithms for computing the sample variance" (1983). A chunk in registers is centred on its
own mean. Of one that is read tile after tile the first tile's mean serves all: digits are lost only where that tile is
unlike the rest, at worst in proportion to the tiles per chunk. Parts merge as M2 = M2_a + M2_b + delta^2 n_a n_b / n,
here for all chunks of a channel at once. A chunk's mean is published in two parts, the centre and what was found
relative to it: one far above the deviation costs no digits.
"""

import triton
import triton.language as tl

from .rounding import quotient
from .view import channel_sum, spread


@triton.jit
def finite_or_zero(value):
    """A centre has to be finite; with zero instead, inf and NaN reach mean and M2 just as plain sums carry them."""
    return tl.where(tl.abs(value) < float("inf"), value, 0.0)


@triton.jit
def mean_of(
    tiles, count,
    ACCUMULATOR: tl.constexpr, CHANNELS_LAST: tl.constexpr, FOLD: tl.constexpr, RUN: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The mean [BLOCK_C] of tiles with `count` values a channel and zeros elsewhere, without overflow.

    Of 16-bit values that lie far from zero beside their deviation the sum is exact, so the mean is rounded once.
    """
    IS_HALF: tl.constexpr = tiles[0].dtype == tl.float16
    MOST: tl.constexpr = triton.next_power_of_2(len(tiles)) * tiles[0].shape[1] * tiles[0].shape[2]
    share: tl.constexpr = 1.0 if IS_HALF else 1.0 / MOST  # a power of two: nothing is rounded
    total = tiles[0].to(ACCUMULATOR) * share
    for t in tl.static_range(1, len(tiles)):
        total += tiles[t].to(ACCUMULATOR) * share
    return quotient(channel_sum(total, CHANNELS_LAST, FOLD, RUN, BLOCK_C), count * share)


@triton.jit
def moments_about(
    mean, tiles, masks, count,
    ACCUMULATOR: tl.constexpr, CHANNELS_LAST: tl.constexpr, FOLD: tl.constexpr, RUN: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """The tiles' mean, as centre and offset, and M2, from their mean as mean_of found it.

    What float32 and float64 lose by rounding it is found again; of 16-bit values inf and NaN alone get that far.
    """
    IS_WIDE: tl.constexpr = tiles[0].dtype.primitive_bitwidth > 16
    centre, offset = mean, tl.zeros_like(mean)
    if IS_WIDE:
        centre = finite_or_zero(mean)
    wide_centre = spread(centre, CHANNELS_LAST, FOLD, RUN, BLOCK_I)
    deviation = tiles[0].to(ACCUMULATOR) - tl.where(masks[0], wide_centre, 0.0)
    squares = deviation * deviation
    for t in tl.static_range(1, len(tiles)):
        further = tiles[t].to(ACCUMULATOR) - tl.where(masks[t], wide_centre, 0.0)
        squares += further * further
        if IS_WIDE:
            deviation += further
    M2 = channel_sum(squares, CHANNELS_LAST, FOLD, RUN, BLOCK_C)
    if IS_WIDE:
        offset, M2 = centred_moments(channel_sum(deviation, CHANNELS_LAST, FOLD, RUN, BLOCK_C), M2, count)
    return centre, offset, M2


@triton.jit
def centred_moments(deviation, squares, count):
    """Mean minus centre, and M2, from the sums of (value - centre) and of its square."""
    offset = deviation / count
    M2 = squares - offset * offset * count
    return offset, tl.where(M2 < 0, 0.0, M2)


@triton.jit
def store_numbers(partials, c, channels, chunk, numbers, BLOCK_K: tl.constexpr):
    """Write a chunk's numbers [BLOCK_C, n] to partials (C, BLOCK_K, n), all of a channel's by one access."""
    n: tl.constexpr = numbers.shape[1]
    at = (c * BLOCK_K + chunk)[:, None] * n + tl.arange(0, n)[None, :]
    tl.store(partials + at, numbers, (c < channels)[:, None])


@triton.jit
def load_numbers(partials, c, channels, k, chunks, BLOCK_K: tl.constexpr, n: tl.constexpr):
    """The numbers [BLOCK_C, k, n] of some chunks, zero where there is none; whole rows, so by wide loads."""
    row = (c[:, None] * BLOCK_K + k[None, :])[:, :, None] * n + tl.arange(0, n)[None, None, :]
    numbers = tl.load(partials + row, (c < channels)[:, None, None], other=0.0)
    return tl.where((k < chunks)[None, :, None], numbers, 0.0)


@triton.jit
def store_sums(partials, c, channels, chunk, first, second, BLOCK_K: tl.constexpr):
    """Write a chunk's two sums [BLOCK_C] of a backward pass to partials (C, BLOCK_K, 2)."""
    store_numbers(partials, c, channels, chunk, tl.join(first, second), BLOCK_K)


@triton.jit
def add_sums(partials, c, channels, chunks, BLOCK_K: tl.constexpr, BLOCK_M: tl.constexpr):
    """Both sums [BLOCK_C] over all chunks, BLOCK_M at a time, in one and the same order."""
    sums = tl.zeros([c.shape[0], BLOCK_M, 2], partials.dtype.element_ty)
    for before in range(0, BLOCK_K, BLOCK_M):
        sums += load_numbers(partials, c, channels, before + tl.arange(0, BLOCK_M), chunks, BLOCK_K, 2)
    return tl.split(tl.sum(sums, 1))


@triton.jit
def publish(partials, c, channels, first, second, BLOCK_K: tl.constexpr):
    """Write two numbers [BLOCK_C] for all chunks to read behind the sums of each, as (2, C)."""
    published = partials + 2 * tl.cast(channels, c.dtype) * BLOCK_K
    tl.store(published + c, first, c < channels)
    tl.store(published + channels + c, second, c < channels)


@triton.jit
def load_published(partials, c, channels, BLOCK_K: tl.constexpr):
    """The two numbers [BLOCK_C] back."""
    published = partials + 2 * tl.cast(channels, c.dtype) * BLOCK_K
    return tl.load(published + c, c < channels, other=0.0), tl.load(published + channels + c, c < channels, other=0.0)


@triton.jit
def store_moments(partials, c, channels, chunk, centre, offset, M2, count, BLOCK_K: tl.constexpr):
    """Write a chunk's mean, as centre + offset, M2 [BLOCK_C] and number of values to partials (C, BLOCK_K, 4)."""
    count = tl.zeros_like(M2) + count
    numbers = tl.join(tl.join(centre, M2), tl.join(offset, count))
    store_numbers(partials, c, channels, chunk, tl.reshape(numbers, [c.shape[0], 4]), BLOCK_K)


@triton.jit
def load_moments(partials, c, channels, k, chunks, BLOCK_K: tl.constexpr):
    """Centre, offset, M2 and number of values [BLOCK_C, k] of some chunks."""
    numbers = load_numbers(partials, c, channels, k, chunks, BLOCK_K, 4)
    first, second = tl.split(tl.reshape(numbers, [c.shape[0], k.shape[0], 2, 2]))
    centre, M2 = tl.split(first)
    offset, count = tl.split(second)
    return centre, offset, M2, count


@triton.jit
def merge_chunks(partials, c, channels, chunks, BLOCK_K: tl.constexpr, BLOCK_M: tl.constexpr):
    """Mean, as centre and offset, and biased variance [BLOCK_C] of all chunks, BLOCK_M at a time, in the same order."""
    reference = finite_or_zero(tl.load(partials + c * BLOCK_K * 4, c < channels, other=0.0))
    mean, variance, total = tl.zeros_like(reference), tl.zeros_like(reference), tl.zeros_like(reference)
    for before in range(0, BLOCK_K, BLOCK_M):
        k = before + tl.arange(0, BLOCK_M)
        centre, offset, M2, count = load_moments(partials, c, channels, k, chunks, BLOCK_K)
        here = tl.sum(count, 1)
        share = count / tl.maximum(here, 1.0)[:, None]
        delta = tl.where((k < chunks)[None, :], centre - reference[:, None] + offset, 0.0)
        part_mean = tl.sum(delta * share, 1)
        delta = tl.where((k < chunks)[None, :], delta - part_mean[:, None], 0.0)
        part_variance = tl.sum(M2, 1) / tl.maximum(here, 1.0) + tl.sum(delta * delta * share, 1)
        mean, variance, total = merge_two(mean, variance, total, part_mean, part_variance, here)
    return reference, mean, variance


@triton.jit
def merge_two(mean, variance, total, part_mean, part_variance, here):
    """Mean, biased variance and number of values with those of a part that has `here` of them."""
    total += here
    weight = here / tl.maximum(total, 1.0)
    step = part_mean - mean
    variance += (part_variance - variance) * weight + step * step * weight * (1.0 - weight)
    return mean + step * weight, variance, total


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
