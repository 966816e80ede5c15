"""Backward in one launch with x and dy read once: a chunk is one tile of each, kept until its channels' sums are known.

The formulas are in backward.py.
"""

import triton
import triton.language as tl

from .channel import VECTORS, load_statistics, scale_and_shift
from .exchange import last_chunk, meet, my_items
from .gradient import coefficients, input_gradient, store_gradients
from .hold import as_loaded
from .resident_forward import EVERYONE_MERGES
from .upstream import gradient_of_z, load_clue
from .view import block_channels, channel_sum, load_view, spread, store_view
from .welford import add_sums, load_published, publish, store_sums


@triton.jit(do_not_specialize_on_alignment=VECTORS)
def resident_backward_kernel(
    x, dy, dx, dresidual,  # (N, C, ...) of any strides; dx and dresidual are None where they are not wanted
    residual, signs,  # what tells the derivative of the activation beside x: like x, and bytes; each may be None
    weight, bias,  # (C,) or None
    statistics,  # (2, C): mean, invstd
    dweight, dbias,  # (C,), written, or None
    partials,  # (2, C, BLOCK_K): each chunk's sums of dz and of dz (x - mean); then (2, C): what dx takes of all
    counters,  # of exchange.py, or None
    slope: tl.float64,
    channels, outer, outer_1, outer_2, inner, blocks, chunks, tiles_per_chunk, window,
    x_o0, x_o1, x_o2, x_c, x_i,
    dy_o0, dy_o1, dy_o2, dy_c, dy_i,
    dx_o0, dx_o1, dx_o2, dx_c, dx_i,
    r_o0, r_o1, r_o2, r_c, r_i,
    ACTIVATION: tl.constexpr,
    ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr,
    OUTER_RANK: tl.constexpr, CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr,
    FOLD: tl.constexpr, RUN: tl.constexpr, GROUP: tl.constexpr, PACKED: tl.constexpr, AT_ONCE: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_K: tl.constexpr,
    MASK_C: tl.constexpr, MASK_O: tl.constexpr, MASK_I: tl.constexpr,
):  # fmt: skip
    """The chunk's sums; the channel's, added in one and the same order; dx."""
    begin, end, step = my_items(counters, blocks * chunks, BLOCK_K, AT_ONCE)
    for item in range(begin, end, step):
        block, chunk = item // chunks, (item % chunks).to(INDEX)
        c = block_channels(block, BLOCK_C, INDEX)
        held_dy, mask = load_view(
            dy, chunk, block, c, channels, outer, outer_1, outer_2, inner, dy_o0, dy_o1, dy_o2, dy_c, dy_i,
            OUTER_RANK, CHANNELS_LAST, ALIGN, INDEX, FOLD, RUN, BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O, MASK_I,
        )  # fmt: skip
        held_x, _ = load_view(
            x, chunk, block, c, channels, outer, outer_1, outer_2, inner, x_o0, x_o1, x_o2, x_c, x_i,
            OUTER_RANK, CHANNELS_LAST, ALIGN, INDEX, FOLD, RUN, BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O, MASK_I,
        )  # fmt: skip
        clue = load_clue(
            residual, signs, chunk, block, c, channels, outer, outer_1, outer_2, inner, r_o0, r_o1, r_o2, r_c, r_i,
            OUTER_RANK, CHANNELS_LAST, ALIGN, INDEX, FOLD, RUN, GROUP,
            BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O, MASK_I,
        )  # fmt: skip
        held_dy, held_x = as_loaded(held_dy, PACKED), as_loaded(held_x, PACKED)
        if residual is not None:
            clue = as_loaded(clue, PACKED)
        mean, invstd = load_statistics(statistics, c, channels, ACCUMULATOR)
        scale, shift = scale_and_shift(weight, bias, c, channels, invstd)
        deviation = held_x.to(ACCUMULATOR) - spread(mean, CHANNELS_LAST, FOLD, RUN, BLOCK_I)
        dz = gradient_of_z(
            held_dy.to(ACCUMULATOR), deviation, clue, signs, scale, shift, slope,
            ACTIVATION, CHANNELS_LAST, FOLD, RUN, GROUP,
        )  # fmt: skip
        if dresidual is not None:
            store_view(
                dresidual, dz, chunk, block, c, channels, outer, outer_1, outer_2, inner,
                dx_o0, dx_o1, dx_o2, dx_c, dx_i,
                OUTER_RANK, CHANNELS_LAST, ALIGN, INDEX, FOLD, RUN, BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O, MASK_I,
            )  # fmt: skip
        total_dz = channel_sum(tl.where(mask, dz, 0.0), CHANNELS_LAST, FOLD, RUN, BLOCK_C)
        total_dz_x = channel_sum(tl.where(mask, dz * deviation, 0.0), CHANNELS_LAST, FOLD, RUN, BLOCK_C)

        last = True
        if BLOCK_K > 1:
            store_sums(partials, c, channels, chunk, total_dz, total_dz_x, BLOCK_K)
            last = last_chunk(counters, block, chunks)
            if BLOCK_C * BLOCK_K <= EVERYONE_MERGES:
                meet(counters, block, blocks, chunk, chunks, last, BLOCK_K)
                total_dz, total_dz_x = add_sums(partials, c, channels, chunks, BLOCK_K)
            elif last:
                total_dz, total_dz_x = add_sums(partials, c, channels, chunks, BLOCK_K)
        if last:
            store_gradients(dweight, dbias, c, channels, invstd, total_dz, total_dz_x)
        values = (tl.cast(outer, INDEX) * inner).to(ACCUMULATOR)
        if BLOCK_K == 1 or BLOCK_C * BLOCK_K <= EVERYONE_MERGES:
            x_factor, offset = coefficients(scale, invstd, total_dz, total_dz_x, values)
        else:
            if last:
                first, second = coefficients(scale, invstd, total_dz, total_dz_x, values)
                publish(partials, c, channels, first, second, BLOCK_K)
            meet(counters, block, blocks, chunk, chunks, last, BLOCK_K)
            x_factor, offset = load_published(partials, c, channels, BLOCK_K)
        held_dy, held_x = as_loaded(held_dy, PACKED), as_loaded(held_x, PACKED)
        if residual is not None:
            clue = as_loaded(clue, PACKED)
        mean, invstd = load_statistics(statistics, c, channels, ACCUMULATOR)
        scale, shift = scale_and_shift(weight, bias, c, channels, invstd)
        deviation = held_x.to(ACCUMULATOR) - spread(mean, CHANNELS_LAST, FOLD, RUN, BLOCK_I)
        dz = gradient_of_z(
            held_dy.to(ACCUMULATOR), deviation, clue, signs, scale, shift, slope,
            ACTIVATION, CHANNELS_LAST, FOLD, RUN, GROUP,
        )  # fmt: skip
        gradient = input_gradient(dz, deviation, scale, x_factor, offset, CHANNELS_LAST, FOLD, RUN)
        store_view(
            dx, gradient, chunk, block, c, channels, outer, outer_1, outer_2, inner, dx_o0, dx_o1, dx_o2, dx_c, dx_i,
            OUTER_RANK, CHANNELS_LAST, ALIGN, INDEX, FOLD, RUN, BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O, MASK_I,
        )  # fmt: skip
