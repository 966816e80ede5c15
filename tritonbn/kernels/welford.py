"""Welford statistics in blocks: the mean and M2 of a chunk from centred values, chunks merged by Chan's rule.

Chan, Golub and LeVeque, "Algorithms for computing the sample variance" (1983). Values centred on the exact mean of the
chunk's first tile lose digits only where that tile is unlike the rest: at worst in proportion to the tiles per chunk.
Parts merge as M2 = M2_a + M2_b + delta^2 n_a n_b / n, here for all chunks of a channel at once. The means of chunks
are published minus the channel's first element, so that a mean far larger than the deviation costs them no digits.
"""

import triton
import triton.language as tl

from .view import tiles_of_chunk, values_before


@triton.jit
def finite_or_zero(value):
    """A centre has to be finite; with zero instead, inf and NaN reach mean and M2 just as plain sums carry them."""
    return tl.where(tl.abs(value) < float("inf"), value, 0.0)


@triton.jit
def first_element(x, c, channels, stride_c, ACCUMULATOR: tl.constexpr):
    """The value [BLOCK_C] to which the means of all chunks of a channel are relative."""
    return finite_or_zero(tl.load(x + c * stride_c, c < channels, other=0.0).to(ACCUMULATOR))


@triton.jit
def centred_moments(deviation, squares, count):
    """Mean minus centre, and M2, from the sums of (value - centre) and of its square."""
    offset = deviation / count
    M2 = squares - offset * offset * count
    return offset, tl.where(M2 < 0, 0.0, M2)


@triton.jit
def partial_pointers(partials, c, channels, chunk, BLOCK_K: tl.constexpr):
    """Where a chunk's two numbers for each channel lie in partials (2, C, BLOCK_K)."""
    first = partials + c * BLOCK_K + chunk
    return first, first + tl.cast(channels, c.dtype) * BLOCK_K


@triton.jit
def store_partials(partials, c, channels, chunk, first, second, BLOCK_K: tl.constexpr):
    """Write a chunk's two numbers [BLOCK_C] to partials (2, C, BLOCK_K)."""
    first_at, second_at = partial_pointers(partials, c, channels, chunk, BLOCK_K)
    tl.store(first_at, first, c < channels)
    tl.store(second_at, second, c < channels)


@triton.jit
def load_partials(partials, c, channels, chunks, BLOCK_K: tl.constexpr):
    """Both numbers [BLOCK_C, BLOCK_K] of every chunk, zero where there is none; whole rows, so by wide loads."""
    k = tl.arange(0, BLOCK_K)[None, :]
    first, second = partial_pointers(partials, c[:, None], channels, k, BLOCK_K)
    mask = (c < channels)[:, None]
    first, second = tl.load(first, mask, other=0.0), tl.load(second, mask, other=0.0)
    return tl.where(k < chunks, first, 0.0), tl.where(k < chunks, second, 0.0)


@triton.jit
def add_partials(partials, c, channels, chunks, BLOCK_K: tl.constexpr):
    """Both numbers [BLOCK_C] summed over all chunks, in one and the same order."""
    first, second = load_partials(partials, c, channels, chunks, BLOCK_K)
    return tl.sum(first, 1), tl.sum(second, 1)


@triton.jit
def store_totals(partials, c, channels, first, second, BLOCK_K: tl.constexpr):
    """Write two numbers [BLOCK_C] behind the partials, as (2, C)."""
    totals = partials + 2 * tl.cast(channels, c.dtype) * BLOCK_K
    tl.store(totals + c, first, c < channels)
    tl.store(totals + channels + c, second, c < channels)


@triton.jit
def load_totals(partials, c, channels, BLOCK_K: tl.constexpr):
    """The two numbers [BLOCK_C] back."""
    totals = partials + 2 * tl.cast(channels, c.dtype) * BLOCK_K
    return tl.load(totals + c, c < channels, other=0.0), tl.load(totals + channels + c, c < channels, other=0.0)


@triton.jit
def merge_chunks(
    partials, c, channels, outer, inner, chunks, tiles_per_chunk,
    BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_K: tl.constexpr, INDEX: tl.constexpr,
    FOLD: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """Mean minus first element, and biased variance [BLOCK_C], of all chunks, merged in one and the same order."""
    chunk_mean, chunk_M2 = load_partials(partials, c, channels, chunks, BLOCK_K)
    k = tl.arange(0, BLOCK_K)
    first, last = tiles_of_chunk(k, tiles_per_chunk, outer, inner, BLOCK_O, BLOCK_I, INDEX, FOLD, RUN)
    count = values_before(last, outer, inner, BLOCK_O, BLOCK_I, FOLD, RUN)
    count -= values_before(first, outer, inner, BLOCK_O, BLOCK_I, FOLD, RUN)
    total = (tl.cast(outer, INDEX) * inner).to(chunk_M2.dtype)
    mean, variance = merge_parts(chunk_mean, chunk_M2, count.to(chunk_M2.dtype)[None, :], total, 1)
    return tl.reshape(mean, c.shape), tl.reshape(variance, c.shape)


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
