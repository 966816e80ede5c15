"""Training forward in one launch, x read once: a chunk is one tile, kept in registers until its channels are known."""

import triton
import triton.language as tl

from .affine import store_y
from .channel import VECTORS, load_statistics, scale_and_shift
from .exchange import last_chunk, meet, my_items
from .finish import finish_channels
from .hold import as_loaded
from .rounding import inverse_sqrt
from .view import block_channels, channel_sum, load_view, spread, values_before
from .welford import centred_moments, merge_chunks, store_moments, tile_centre

EVERYONE_MERGES = tl.constexpr(4)
"""Up to so many results of chunks every program merges them itself; of more, the last to arrive does, and publishes."""


@triton.jit(do_not_specialize_on_alignment=VECTORS)
def resident_forward_kernel(
    x, y,  # (N, C, ...) of any strides
    residual,  # like x, or None
    weight, bias,  # (C,) or None
    running_mean, running_var,  # (C,) or None, updated in place
    average_factor,  # () or None: a weight of the new statistics that lives on the device, instead of momentum
    num_batches_tracked,  # () or None, counted up; if CUMULATIVE its inverse is the weight
    statistics,  # (2, C), written: mean, invstd
    signs,  # bytes or None, written: a bit an element, whether the activation passes its gradient
    partials,  # (3, C, BLOCK_K) workspace: each chunk's mean, as centre and offset, and M2
    counters,  # of exchange.py, or None
    momentum: tl.float64, eps: tl.float64, slope: tl.float64,
    channels, outer, outer_1, outer_2, inner, blocks, chunks, tiles_per_chunk, window,
    x_o0, x_o1, x_o2, x_c, x_i,
    y_o0, y_o1, y_o2, y_c, y_i,
    r_o0, r_o1, r_o2, r_c, r_i,
    CORRECTION: tl.constexpr, CUMULATIVE: tl.constexpr, ACTIVATION: tl.constexpr,
    ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr,
    OUTER_RANK: tl.constexpr, CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr,
    FOLD: tl.constexpr, RUN: tl.constexpr, GROUP: tl.constexpr, PACKED: tl.constexpr, AT_ONCE: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_K: tl.constexpr,
    MASK_C: tl.constexpr, MASK_O: tl.constexpr, MASK_I: tl.constexpr,
):  # fmt: skip
    """The chunk's exact mean and M2; the channel's, merged in one and the same order; y."""
    begin, end, step = my_items(counters, blocks * chunks, BLOCK_K, AT_ONCE)
    for item in range(begin, end, step):
        block, chunk = item // chunks, (item % chunks).to(INDEX)
        c = block_channels(block, BLOCK_C, INDEX)
        held, mask = load_view(
            x, chunk, block, c, channels, outer, outer_1, outer_2, inner, x_o0, x_o1, x_o2, x_c, x_i,
            OUTER_RANK, CHANNELS_LAST, ALIGN, INDEX, FOLD, RUN, BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O, MASK_I,
        )  # fmt: skip
        held = as_loaded(held, PACKED)
        count = values_before(chunk + 1, outer, inner, BLOCK_O, BLOCK_I, FOLD, RUN)
        count = (count - values_before(chunk, outer, inner, BLOCK_O, BLOCK_I, FOLD, RUN)).to(ACCUMULATOR)
        centre = tile_centre(held, count, ACCUMULATOR, CHANNELS_LAST, FOLD, RUN, BLOCK_C)
        held = as_loaded(held, PACKED)
        deviation = held.to(ACCUMULATOR) - spread(centre, CHANNELS_LAST, FOLD, RUN, BLOCK_I)
        deviation = tl.where(mask, deviation, 0.0)
        offset, M2 = centred_moments(
            channel_sum(deviation, CHANNELS_LAST, FOLD, RUN, BLOCK_C),
            channel_sum(deviation * deviation, CHANNELS_LAST, FOLD, RUN, BLOCK_C),
            count,
        )
        variance = M2 / count

        last = True
        if BLOCK_K > 1:
            store_moments(partials, c, channels, chunk, centre, offset, M2, BLOCK_K)
            last = last_chunk(counters, block, chunks)
            if BLOCK_C * BLOCK_K <= EVERYONE_MERGES:
                meet(counters, block, blocks, chunk, chunks, last, BLOCK_K)
                centre, offset, variance = merge_chunks(
                    partials, c, channels, outer, inner, chunks, 1, BLOCK_O, BLOCK_I, BLOCK_K, INDEX, FOLD, RUN
                )
            elif last:
                centre, offset, variance = merge_chunks(
                    partials, c, channels, outer, inner, chunks, 1, BLOCK_O, BLOCK_I, BLOCK_K, INDEX, FOLD, RUN
                )
        mean = centre + offset
        invstd = inverse_sqrt(variance + tl.full([BLOCK_C], eps, ACCUMULATOR))
        if last:
            finish_channels(
                mean, variance, invstd, (tl.cast(outer, INDEX) * inner).to(ACCUMULATOR),
                statistics, running_mean, running_var, average_factor, num_batches_tracked, counters, momentum,
                c, channels, block, blocks, CORRECTION, CUMULATIVE,
            )  # fmt: skip
        if BLOCK_K > 1 and BLOCK_C * BLOCK_K > EVERYONE_MERGES:
            meet(counters, block, blocks, chunk, chunks, last, BLOCK_K)
            mean, invstd = load_statistics(statistics, c, channels, ACCUMULATOR)
        scale, shift = scale_and_shift(weight, bias, c, channels, invstd)
        held = as_loaded(held, PACKED)
        store_y(
            held.to(ACCUMULATOR), mean, scale, shift, y, residual, signs, slope,
            chunk, block, c, channels, outer, outer_1, outer_2, inner,
            y_o0, y_o1, y_o2, y_c, y_i, r_o0, r_o1, r_o2, r_c, r_i,
            ACTIVATION, OUTER_RANK, CHANNELS_LAST, ALIGN, INDEX, FOLD, RUN, GROUP,
            BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O, MASK_I,
        )  # fmt: skip
