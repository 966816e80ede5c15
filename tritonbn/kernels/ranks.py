"""Statistics and sums that processes exchange: each one's own for it to send, and what came back from all of them.

Of the forward pass every process sends moments (3 C + 1): its mean, as centre and offset, its biased variance, and how
many values a channel has there; of the backward pass sums (2 C + 1): of dz, of dz (x - mean), and the same number. Each
lies behind the partial results of the launch that made it (partials.py).
"""

import triton
import triton.language as tl

from .channel import load_channels
from .rounding import product
from .welford import finite_or_zero, merge_two

MERGED_AT_ONCE = tl.constexpr(1024)
"""Results of processes, of all channels of a block together, that are loaded in one piece."""


@triton.jit
def send_moments(moments, item, view, centre, offset, variance, values):
    """Write this process's moments [BLOCK_C]."""
    c, channels = item.c, view.channels
    wide = tl.cast(channels, c.dtype)
    tl.store(moments + c, centre, c < channels)
    tl.store(moments + wide + c, offset, c < channels)
    tl.store(moments + 2 * wide + c, variance, c < channels)
    if item.block == 0:
        tl.store(moments + 3 * wide, values)


@triton.jit
def merge_ranks(gathered, c, view, RANKS: tl.constexpr):
    """Mean, biased variance [BLOCK_C] and number of values per channel of gathered (RANKS, 3 C + 1).

    By Chan's rule, in the order of the ranks; a process without values changes nothing, whatever its moments are.
    """
    BLOCK_R: tl.constexpr = triton.next_power_of_2(RANKS)
    MOST: tl.constexpr = MERGED_AT_ONCE // view.BLOCK_C if view.BLOCK_C < MERGED_AT_ONCE else 1
    BLOCK_M: tl.constexpr = BLOCK_R if BLOCK_R < MOST else MOST  # min and max are for tensors before Triton 3.6
    wide = tl.cast(view.channels, c.dtype)
    reference = tl.zeros([view.BLOCK_C], view.ACCUMULATOR)
    mean, variance = tl.zeros_like(reference), tl.zeros_like(reference)
    total = tl.sum(reference, 0)
    for before in range(0, RANKS, BLOCK_M):
        rank = before + tl.arange(0, BLOCK_M)
        moments = gathered + rank * (3 * wide + 1)
        values = tl.load(moments + 3 * wide, rank < RANKS, other=0.0)
        taken = (values > 0)[None, :] & (c < view.channels)[:, None]
        moments = moments[None, :] + c[:, None]
        centre = tl.load(moments, taken, other=0.0)
        offset = tl.load(moments + wide, taken, other=0.0)
        variances = tl.load(moments + 2 * wide, taken, other=0.0)
        largest = finite_or_zero(tl.max(tl.where(taken, centre, float("-inf")), 1))
        reference = tl.where(total > 0, reference, largest)
        here = tl.sum(values, 0)
        share = (values / tl.maximum(here, 1.0))[None, :]
        delta = tl.where(taken, centre - reference[:, None] + offset, 0.0)
        part_mean = tl.sum(product(delta, share), 1)
        delta = tl.where(taken, delta - part_mean[:, None], 0.0)
        part_variance = tl.sum(product(variances + delta * delta, share), 1)
        mean, variance, total = merge_two(mean, variance, total, part_mean, part_variance, here)
    return reference + mean, variance, total


@triton.jit
def send_sums(sums, item, view, sum_dz, sum_dz_x, values):
    """Write this process's sums [BLOCK_C]."""
    c, channels = item.c, view.channels
    wide = tl.cast(channels, c.dtype)
    tl.store(sums + c, sum_dz, c < channels)
    tl.store(sums + wide + c, sum_dz_x, c < channels)
    if item.block == 0:
        tl.store(sums + 2 * wide, values)


@triton.jit
def load_sums(sums, c, view):
    """Both sums [BLOCK_C] over all processes, and their number of values per channel."""
    wide = tl.cast(view.channels, c.dtype)
    sum_dz = load_channels(sums, c, view)
    return sum_dz, load_channels(sums + wide, c, view), tl.load(sums + 2 * wide)
