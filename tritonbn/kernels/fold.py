"""Folded tiles: what lies side by side in memory is read as one run, whichever channels it belongs to.

A run holds FOLD elements of each of its channels, RUN in all. Channels-last it is FOLD whole pixels, lane j belonging
to channel j % (RUN // FOLD); otherwise the planes of neighbouring channels, lane j belonging to channel j // FOLD. A
tile [1, BLOCK_O, BLOCK_I] is BLOCK_O runs of a block of channels [BLOCK_C], BLOCK_I >= RUN lanes each. So accesses are
wide where a plane of 7 x 7 or a pixel of 3 channels alone would be read element by element.
"""

import triton
import triton.language as tl

from .tile import MOST_DEALT, PARTLY, column_sum, multiple


@triton.jit
def run_indices(tile, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, INDEX: tl.constexpr):
    """Run [1, BLOCK_O, 1] and lane [1, 1, BLOCK_I] indices of a tile."""
    run = tl.cast(tile, INDEX) * BLOCK_O + tl.arange(0, BLOCK_O)
    return run[None, :, None], tl.arange(0, BLOCK_I)[None, None, :]


@triton.jit
def run_mask(
    block, run, lane, channels, outer, inner,
    CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr, FOLD: tl.constexpr, RUN: tl.constexpr, BLOCK_C: tl.constexpr,
    MASK_C: tl.constexpr, MASK_O: tl.constexpr, MASK_I: tl.constexpr,
):  # fmt: skip
    """Which elements exist; the bounds of lanes are known multiples of ALIGN, or no access would be wide."""
    mask = tl.full([1, 1, 1], True, tl.int1)
    if MASK_I:
        mask = mask & (lane < RUN)
    if MASK_C and not CHANNELS_LAST:
        mask = mask & (lane < multiple((channels - block * BLOCK_C) * FOLD, ALIGN))
    if MASK_O == PARTLY and CHANNELS_LAST:
        mask = mask & (run * RUN + lane < multiple(tl.cast(inner, run.dtype) * channels, ALIGN))
    if MASK_O == PARTLY and not CHANNELS_LAST:
        mask = mask & (run < outer)
    return mask


@triton.jit
def run_offsets(
    block, run, lane, outer_1, outer_2,
    stride_o0, stride_o1, stride_o2, stride_c,
    OUTER_RANK: tl.constexpr, CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr, RUN: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Element offsets of a tile."""
    if CHANNELS_LAST:
        offsets = run * RUN + lane
    else:
        offsets = multiple(block * BLOCK_C * stride_c, ALIGN) + lane
        if OUTER_RANK == 3:
            offsets += run % outer_2 * multiple(stride_o2, ALIGN)
            run = run // outer_2
        if OUTER_RANK >= 2:
            offsets += run % outer_1 * multiple(stride_o1, ALIGN)
            run = run // outer_1
        offsets += run * multiple(stride_o0, ALIGN)
    return offsets


@triton.jit
def run_sum(
    value,
    CHANNELS_LAST: tl.constexpr, FOLD: tl.constexpr, RUN: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """[1, BLOCK_O, BLOCK_I] -> [BLOCK_C]: the lanes of each channel, in all runs."""
    if value.shape[1] * value.shape[2] > MOST_DEALT:
        value = tl.sum(value, 1, keep_dims=True)
    BLOCK_O: tl.constexpr = value.shape[1]
    BLOCK_I: tl.constexpr = value.shape[2]
    BLOCK_F: tl.constexpr = triton.next_power_of_2(FOLD)
    r, c = tl.arange(0, BLOCK_O * BLOCK_F)[:, None], tl.arange(0, BLOCK_C)[None, :]
    run, f = r // BLOCK_F, r % BLOCK_F
    if CHANNELS_LAST:
        lane = f * (RUN // FOLD) + c
    else:
        lane = c * FOLD + f
    exists = (c < RUN // FOLD) & (f < FOLD)
    at = tl.reshape(tl.where(exists, run * BLOCK_I + lane, 0), [BLOCK_O * BLOCK_F * BLOCK_C])
    parts = tl.gather(tl.reshape(value, [BLOCK_O * BLOCK_I]), at, 0)
    return column_sum(tl.where(exists, tl.reshape(parts, [BLOCK_O * BLOCK_F, BLOCK_C]), 0.0))


@triton.jit
def over_run(
    value,
    CHANNELS_LAST: tl.constexpr, FOLD: tl.constexpr, RUN: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """[BLOCK_C] -> [1, 1, BLOCK_I]: each channel's number in all of its lanes."""
    lane = tl.arange(0, BLOCK_I)
    if CHANNELS_LAST:
        channel = lane % (RUN // FOLD)
    else:
        channel = tl.minimum(lane // FOLD, value.shape[0] - 1)
    return tl.gather(value, channel, 0)[None, None, :]
