"""Welford statistics in blocks: the mean and M2 of a chunk from centred values, chunks merged by Chan's rule.

Chan, Golub and LeVeque, "Algorithms for computing the sample variance" (1983). A chunk in registers is centred on its
own mean, one of which only a part is there on that part's. Of one that is read tile after tile the first tile's mean
serves all: digits are lost only where that part is unlike the rest, at worst in proportion to how much more there is.
Parts merge as M2 = M2_a + M2_b + delta^2 n_a n_b / n: moments.py.
"""

import triton
import triton.language as tl

from .rounding import quotient
from .view import channel_sum, spread, sum_to_edges
from .wide import wide


@triton.jit
def finite_or_zero(value):
    """A centre has to be finite; with zero instead, inf and NaN reach mean and M2 just as plain sums carry them."""
    return tl.where(tl.abs(value) < float("inf"), value, 0.0)


@triton.jit
def mean_of(tiles, edges, count, view):
    """The mean [BLOCK_C] of tiles with `count` values per channel, edges (edges.py) included, and zeros elsewhere.

    Without overflow, since values are scaled down before they are added where they might.
    Of 16-bit values that lie far from zero beside their deviation the sum is exact, so the mean is rounded once.
    """
    IS_HALF: tl.constexpr = tiles[0].dtype == tl.float16
    MOST: tl.constexpr = triton.next_power_of_2(len(tiles) + len(edges)) * tiles[0].shape[1] * tiles[0].shape[2]
    share: tl.constexpr = 1.0 if IS_HALF else 1.0 / MOST  # a power of two: nothing is rounded
    total = wide(tiles[0], view) * share
    for t in tl.static_range(1, len(tiles)):
        total += wide(tiles[t], view) * share
    if len(edges) > 0:
        total = sum_to_edges(total, edges[0].shape[2])
        for t in tl.static_range(len(edges)):
            total += edges[t].to(view.ACCUMULATOR) * share
    return quotient(channel_sum(total, view), count * share)


@triton.jit
def needs_offset(x, holding):
    """Whether the mean of what is held is not the chunk's: where it holds less, and where rounding it loses digits.

    So float32 and float64 do; of 16-bit values the mean is as exact as they are.
    """
    return tl.constexpr(holding.TOGETHER > 0 or x.base.dtype.element_ty.primitive_bitwidth > 16)


@triton.jit
def centre_of(mean, x, holding):
    """What a chunk is centred on, from the mean of what is held; of 16-bit values inf and NaN get that far."""
    centre = mean
    if needs_offset(x, holding):
        centre = finite_or_zero(mean)
    return centre


@triton.jit
def sums_about(centre, tiles, masks, view):
    """The sums of (value - centre) and of its square over these tiles, element by element."""
    wide_centre = spread(centre, view)
    sum_deviation = wide(tiles[0], view) - tl.where(masks[0], wide_centre, 0.0)
    sum_squares = sum_deviation * sum_deviation
    for t in tl.static_range(1, len(tiles)):
        deviation = wide(tiles[t], view) - tl.where(masks[t], wide_centre, 0.0)
        sum_squares += deviation * deviation
        sum_deviation += deviation
    return sum_deviation, sum_squares


@triton.jit
def moments_about(sum_deviation, sum_squares, count, x, holding, view):
    """A chunk's mean less its centre, and M2, from what sums_about found of all its tiles."""
    M2 = channel_sum(sum_squares, view)
    offset = tl.zeros_like(M2)
    if needs_offset(x, holding):
        offset, M2 = centred_moments(channel_sum(sum_deviation, view), M2, count)
    return offset, M2


@triton.jit
def centred_moments(sum_deviation, sum_squares, count):
    """Mean minus centre, and M2, from the sums of (value - centre) and of its square."""
    offset = sum_deviation / count
    lost = tl.where(sum_squares < float("inf"), offset * offset * count, offset - offset)  # NaN if a value is infinite
    M2 = sum_squares - lost
    return offset, tl.where(M2 < 0, 0.0, M2)


@triton.jit
def merge_two(mean, variance, total, part_mean, part_variance, here):
    """Mean, biased variance and number of values with those of a part that has `here` of them."""
    total += here
    weight = here / tl.maximum(total, 1.0)
    step = part_mean - mean
    variance = variance * (1.0 - weight) + part_variance * weight  # where both are inf so is the result
    return mean + step * weight, variance + step * weight * (step * (1.0 - weight)), total


@triton.jit
def merge_parts(part_mean, part_M2, count, total):
    """Mean and biased variance of parts along the first axis, each of `count` values of `total`; keeps the axis."""
    share = count / total
    mean = tl.sum(part_mean * share, 0, keep_dims=True)
    delta = part_mean - mean
    return mean, tl.sum(part_M2 / total + delta * delta * share, 0, keep_dims=True)


@triton.jit
def welford_step(mean, M2, value, count):
    """Mean and M2 of every lane with one more value, its `count`-th (Welford, 1962); value = mean changes nothing."""
    delta = value - mean
    mean += delta * (1.0 / tl.cast(count, mean.dtype))
    return mean, M2 + delta * (value - mean)
