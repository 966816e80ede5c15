"""Welford statistics in blocks: the mean and M2 of a chunk from centred values, chunks merged by Chan's rule.

Chan, Golub and LeVeque, "Algorithms for computing the sample variance" (1983). A chunk is centred on the mean of its
first tile, so that each tile can be added up as it arrives: digits are lost only where that tile is unlike the rest, at
worst in proportion to how many there are. Parts merge as M2 = M2_a + M2_b + delta^2 n_a n_b / n: moments.py.
"""

import triton
import triton.language as tl

from .holding import in_turn
from .rounding import product, quotient
from .view import channel_sum, values_before
from .wide import wide


@triton.jit
def finite_or_zero(value):
    """A centre has to be finite; with zero instead, inf and NaN reach mean and M2 just as plain sums carry them."""
    return tl.where(tl.abs(value) < float("inf"), value, 0.0)


@triton.jit
def centre_of(value, tile, view):
    """The mean [BLOCK_C] of tile number `tile`, `value` being zero where there is no element; zero if not finite.

    Without overflow, since values are scaled down before they are added where they might. Of 16-bit values that lie
    far from zero beside their deviation the sum of a small tile is exact, so the mean is rounded once.
    """
    ELEMENTS: tl.constexpr = value.shape[1] * value.shape[2]
    share: tl.constexpr = 1.0 if value.dtype == tl.float16 else 1.0 / ELEMENTS  # a power of two: nothing is rounded
    count = (values_before(tile + 1, view) - values_before(tile, view)).to(view.ACCUMULATOR)
    return finite_or_zero(quotient(channel_sum(wide(value, view) * share, view), count * share))


@triton.jit
def sums_about(centre, tiles, masks, view, HOLD: tl.constexpr):
    """The sums of (value - centre) and of its square over these tiles, element by element; centre is spread."""
    deviation = wide(tiles[0], view) - tl.where(masks[0], centre, 0.0)
    sums = (deviation, product(deviation, deviation))
    for t in tl.static_range(1, len(tiles)):
        sums = add_deviations(sums, centre, tiles[t], masks[t], view, HOLD)
    return sums


@triton.jit
def add_deviations(sums, centre, tile, mask, view, HOLD: tl.constexpr):
    """The same sums with one tile more."""
    tiles, sums = in_turn((tile,), sums, HOLD)
    deviation = wide(tiles[0], view) - tl.where(mask, centre, 0.0)
    return sums[0] + deviation, sums[1] + deviation * deviation


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
    mean = tl.sum(product(part_mean, share), 0, keep_dims=True)
    delta = part_mean - mean
    return mean, tl.sum(part_M2 / total + delta * delta * share, 0, keep_dims=True)


@triton.jit
def welford_step(mean, M2, value, count):
    """Mean and M2 of every lane with one more value, its `count`-th (Welford, 1962); value = mean changes nothing."""
    delta = value - mean
    mean += delta * (1.0 / tl.cast(count, mean.dtype))
    return mean, M2 + delta * (value - mean)
