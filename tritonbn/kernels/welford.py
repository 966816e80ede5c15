"""Welford statistics in blocks: the mean and M2 of a chunk from centred values, chunks merged by Chan's rule.

Chan, Golub and LeVeque, "Algorithms for computing the sample variance" (1983). Values centred on the mean of the
chunk's first tile lose digits only where that tile is unlike the rest: at worst in proportion to the tiles per chunk.
Parts merge as M2 = M2_a + M2_b + delta^2 n_a n_b / n, here for all chunks of a channel at once. A chunk's mean is
published in two parts, the centre and what was found relative to it: one far above the deviation costs no digits.
"""

import triton
import triton.language as tl

from .view import channel_sum, tiles_of_chunk, values_before


@triton.jit
def finite_or_zero(value):
    """A centre has to be finite; with zero instead, inf and NaN reach mean and M2 just as plain sums carry them."""
    return tl.where(tl.abs(value) < float("inf"), value, 0.0)


@triton.jit
def tile_centre(
    held, count,
    ACCUMULATOR: tl.constexpr, CHANNELS_LAST: tl.constexpr, FOLD: tl.constexpr, RUN: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """About the mean [BLOCK_C] of a tile with `count` values a channel and zeros elsewhere, without overflow.

    Of 16-bit tiles a value of their own dtype: differences to it are exact, and zero where all values are the same.
    """
    centre = channel_sum(held.to(ACCUMULATOR) * (1.0 / count), CHANNELS_LAST, FOLD, RUN, BLOCK_C)
    if held.dtype.primitive_bitwidth == 16:
        centre = centre.to(held.dtype).to(ACCUMULATOR)
    return finite_or_zero(centre)


@triton.jit
def centred_moments(deviation, squares, count):
    """Mean minus centre, and M2, from the sums of (value - centre) and of its square."""
    offset = deviation / count
    M2 = squares - offset * offset * count
    return offset, tl.where(M2 < 0, 0.0, M2)


@triton.jit
def partial_pointers(partials, number, c, channels, chunk, BLOCK_K: tl.constexpr):
    """Where one of a chunk's numbers for each channel lies in partials (numbers, C, BLOCK_K)."""
    return partials + (number * tl.cast(channels, c.dtype) + c) * BLOCK_K + chunk


@triton.jit
def store_partials(partials, number, c, channels, chunk, value, BLOCK_K: tl.constexpr):
    """Write one of a chunk's numbers [BLOCK_C]."""
    tl.store(partial_pointers(partials, number, c, channels, chunk, BLOCK_K), value, c < channels)


MERGED_AT_ONCE = tl.constexpr(1024)
"""Results of chunks, of all channels of a block together, that are loaded in one piece."""


@triton.jit
def load_partials(partials, number, c, channels, k, chunks, BLOCK_K: tl.constexpr):
    """One number [BLOCK_C, k] of some chunks, zero where there is none; whole rows, so by wide loads."""
    at = partial_pointers(partials, number, c[:, None], channels, k[None, :], BLOCK_K)
    return tl.where((k < chunks)[None, :], tl.load(at, (c < channels)[:, None], other=0.0), 0.0)


@triton.jit
def store_sums(partials, c, channels, chunk, first, second, BLOCK_K: tl.constexpr):
    """Write a chunk's two sums [BLOCK_C] of a backward pass to partials (2, C, BLOCK_K)."""
    store_partials(partials, 0, c, channels, chunk, first, BLOCK_K)
    store_partials(partials, 1, c, channels, chunk, second, BLOCK_K)


@triton.jit
def add_sums(partials, c, channels, chunks, BLOCK_K: tl.constexpr):
    """Both sums [BLOCK_C] over all chunks, in one and the same order."""
    BLOCK_M: tl.constexpr = min(BLOCK_K, max(1, MERGED_AT_ONCE // c.shape[0]))
    first = tl.zeros([c.shape[0], BLOCK_M], partials.dtype.element_ty)
    second = tl.zeros([c.shape[0], BLOCK_M], partials.dtype.element_ty)
    for before in range(0, BLOCK_K, BLOCK_M):
        k = before + tl.arange(0, BLOCK_M)
        first += load_partials(partials, 0, c, channels, k, chunks, BLOCK_K)
        second += load_partials(partials, 1, c, channels, k, chunks, BLOCK_K)
    return tl.sum(first, 1), tl.sum(second, 1)


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
def store_moments(partials, c, channels, chunk, centre, offset, M2, BLOCK_K: tl.constexpr):
    """Write a chunk's mean, as centre + offset, and M2 [BLOCK_C] to partials (3, C, BLOCK_K)."""
    store_partials(partials, 0, c, channels, chunk, centre, BLOCK_K)
    store_partials(partials, 1, c, channels, chunk, offset, BLOCK_K)
    store_partials(partials, 2, c, channels, chunk, M2, BLOCK_K)


@triton.jit
def merge_chunks(
    partials, c, channels, outer, inner, chunks, tiles_per_chunk,
    BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_K: tl.constexpr, INDEX: tl.constexpr,
    FOLD: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """Mean, as centre and offset, and biased variance [BLOCK_C] of all chunks, merged in one and the same order."""
    BLOCK_M: tl.constexpr = min(BLOCK_K, max(1, MERGED_AT_ONCE // c.shape[0]))
    centre = partial_pointers(partials, 0, c, channels, 0, BLOCK_K)
    reference = tl.load(centre, c < channels, other=0.0)
    parts = tl.zeros([c.shape[0], BLOCK_M], reference.dtype)
    for before in range(0, BLOCK_K, BLOCK_M):
        k = before + tl.arange(0, BLOCK_M)
        part_mean, share = load_means(
            partials, c, channels, outer, inner, chunks, tiles_per_chunk, k, reference,
            BLOCK_O, BLOCK_I, BLOCK_K, INDEX, FOLD, RUN,
        )  # fmt: skip
        parts += part_mean * share
    mean = tl.sum(parts, 1)
    total = (tl.cast(outer, INDEX) * inner).to(reference.dtype)
    parts = tl.zeros([c.shape[0], BLOCK_M], reference.dtype)
    for before in range(0, BLOCK_K, BLOCK_M):
        k = before + tl.arange(0, BLOCK_M)
        part_mean, share = load_means(
            partials, c, channels, outer, inner, chunks, tiles_per_chunk, k, reference,
            BLOCK_O, BLOCK_I, BLOCK_K, INDEX, FOLD, RUN,
        )  # fmt: skip
        delta = tl.where((k < chunks)[None, :], part_mean - mean[:, None], 0.0)
        parts += load_partials(partials, 2, c, channels, k, chunks, BLOCK_K) / total + delta * delta * share
    return reference, mean, tl.sum(parts, 1)


@triton.jit
def load_means(
    partials, c, channels, outer, inner, chunks, tiles_per_chunk, k, reference,
    BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_K: tl.constexpr, INDEX: tl.constexpr,
    FOLD: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """Means [BLOCK_C, k] of some chunks minus a reference, and the chunks' shares [1, k] of all values."""
    centre = load_partials(partials, 0, c, channels, k, chunks, BLOCK_K)
    offset = load_partials(partials, 1, c, channels, k, chunks, BLOCK_K)
    first, last = tiles_of_chunk(k, tiles_per_chunk, outer, inner, BLOCK_O, BLOCK_I, INDEX, FOLD, RUN)
    count = values_before(last, outer, inner, BLOCK_O, BLOCK_I, FOLD, RUN)
    count -= values_before(first, outer, inner, BLOCK_O, BLOCK_I, FOLD, RUN)
    share = count.to(reference.dtype) / (tl.cast(outer, INDEX) * inner).to(reference.dtype)
    return centre - reference[:, None] + offset, share[None, :]


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
