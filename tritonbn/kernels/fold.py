"""Folded tiles: what lies side by side in memory is read as one run, whichever channels it belongs to.

A run holds FOLD elements of each of its channels, RUN in all. Channels-last it is FOLD whole pixels, lane j belonging
to channel j % (RUN // FOLD); otherwise the planes of neighbouring channels, lane j belonging to channel j // FOLD. A
tile [1, BLOCK_O, BLOCK_I] is BLOCK_O runs of a block of channels [BLOCK_C], BLOCK_I >= RUN lanes each. So accesses are
wide where a plane of 7 x 7 or a pixel of 3 channels alone would be read element by element.
"""

import triton
import triton.language as tl

from .tile import MOST_DEALT, PARTLY, column_sum, column_sums, multiple


@triton.jit
def run_count(view):
    """How many runs there are of a block of channels."""
    return tl.cdiv(tl.cast(view.outer, view.INDEX) * view.inner, view.FOLD)


@triton.jit
def run_indices(tile, view, BLOCK_I: tl.constexpr):
    """Run [1, BLOCK_O, 1] and lane [1, 1, BLOCK_I] indices of a tile."""
    run = tl.cast(tile, view.INDEX) * view.BLOCK_O + tl.arange(0, view.BLOCK_O)
    return run[None, :, None], tl.arange(0, BLOCK_I)[None, None, :]


@triton.jit
def run_mask(block, run, lane, view, MASK_O: tl.constexpr, MASK_I: tl.constexpr):
    """Which elements exist; the bounds of lanes are known multiples of ALIGN, or no access would be wide."""
    mask = tl.full([1, 1, 1], True, tl.int1)
    if MASK_I:
        mask = mask & (lane < view.RUN)
    if view.MASK_C and not view.CHANNELS_LAST:
        channels = tl.cast(view.channels - block * view.BLOCK_C, run.dtype)
        mask = mask & (lane < multiple(channels * view.FOLD, view.ALIGN))
    if MASK_O == PARTLY and view.CHANNELS_LAST:
        mask = mask & (run * view.RUN + lane < multiple(tl.cast(view.inner, run.dtype) * view.channels, view.ALIGN))
    if MASK_O == PARTLY and not view.CHANNELS_LAST:
        mask = mask & (run < view.outer)
    return mask


@triton.jit
def run_offsets(x, block, run, lane, view):
    """Element offsets of a tile of one tensor."""
    if view.CHANNELS_LAST:
        offsets = run * view.RUN + lane
    else:
        offsets = multiple(block * view.BLOCK_C * x.c, view.ALIGN) + lane
        if view.OUTER_RANK == 3:
            offsets += run % view.outer_2 * multiple(x.o2, view.ALIGN)
            run = run // view.outer_2
        if view.OUTER_RANK >= 2:
            offsets += run % view.outer_1 * multiple(x.o1, view.ALIGN)
            run = run // view.outer_1
        offsets += run * multiple(x.o0, view.ALIGN)
    return offsets


@triton.jit
def run_sum(value, view):
    """[1, BLOCK_O, BLOCK_I] -> [BLOCK_C]: the lanes of each channel, in all runs."""
    return column_sum(lanes_of_channels(value, view))


@triton.jit
def run_sums(first, second, view):
    """The same of two tiles at once."""
    return column_sums(lanes_of_channels(first, view), lanes_of_channels(second, view))


@triton.jit
def lanes_of_channels(value, view):
    """[1, BLOCK_O, BLOCK_I] -> [R, BLOCK_C]: in each column the lanes of a channel, in all runs."""
    if value.shape[1] * value.shape[2] > MOST_DEALT:
        value = tl.sum(value, 1, keep_dims=True)
    BLOCK_O: tl.constexpr = value.shape[1]
    BLOCK_I: tl.constexpr = value.shape[2]
    BLOCK_F: tl.constexpr = triton.next_power_of_2(view.FOLD)
    r, c = tl.arange(0, BLOCK_O * BLOCK_F)[:, None], tl.arange(0, view.BLOCK_C)[None, :]
    run, f = r // BLOCK_F, r % BLOCK_F
    if view.CHANNELS_LAST:
        lane = f * (view.RUN // view.FOLD) + c
    else:
        lane = c * view.FOLD + f
    exists = (c < view.RUN // view.FOLD) & (f < view.FOLD)
    at = tl.reshape(tl.where(exists, run * BLOCK_I + lane, 0), [BLOCK_O * BLOCK_F * view.BLOCK_C])
    parts = tl.gather(tl.reshape(value, [BLOCK_O * BLOCK_I]), at, 0)
    return tl.where(exists, tl.reshape(parts, [BLOCK_O * BLOCK_F, view.BLOCK_C]), 0.0)


@triton.jit
def over_run(value, view):
    """[BLOCK_C] -> [1, 1, BLOCK_I]: each channel's number in all of its lanes.

    Of pixels a thread asks for WIDE neighbouring channels: in shared memory every WIDE-th lie side by side, or threads
    would ask the same few banks for them.
    """
    CROWDED: tl.constexpr = view.CHANNELS_LAST and view.BLOCK_C >= 16 and view.RUN // view.FOLD % 4 == 0
    WIDE: tl.constexpr = 8 if CROWDED else 1
    APART: tl.constexpr = view.BLOCK_C // WIDE
    lane = tl.arange(0, view.BLOCK_I)
    if view.CHANNELS_LAST:
        channel = lane % (view.RUN // view.FOLD)
    else:
        channel = tl.minimum(lane // view.FOLD, view.BLOCK_C - 1)
    if WIDE > 1:
        value = tl.reshape(tl.permute(tl.reshape(value, [APART, WIDE]), (1, 0)), [view.BLOCK_C])
        channel = channel % WIDE * APART + channel // WIDE
    return tl.gather(value, channel, 0)[None, None, :]
