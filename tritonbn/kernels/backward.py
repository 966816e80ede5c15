"""Backward in chunks of several tiles: the sums of every chunk, then dx, for which x and dy are read again.

With xhat = (x - mean) invstd, n elements a channel and dz the gradient before the activation (Ioffe and Szegedy, 2015):
dbias = sum dz, dweight = sum dz xhat, dx = weight invstd (dz - dbias / n - xhat dweight / n).
PHASE "dataflow" is one launch of items in an order that lets the second reading find its tensors in the L2; "sums" and
"gradients" are the two halves as launches of their own. The last chunk of a block to arrive merges them all.
RANKS processes that share a batch run these halves with their sums added up in between (ranks.py).
With given statistics (TRAINING false) dx = weight invstd dz, which "sums" writes, being all there is to do.
"""

import triton
import triton.language as tl

from .channel import VECTORS, load_statistics, scale_and_shift
from .exchange import dataflow_item, release, take_ticket, wait
from .gradient import coefficients, input_gradient, store_gradients
from .partials import add_sums, last_to_add, load_pair, rows_of, store_pair
from .ranks import load_sums, send_sums
from .upstream import gradient_of_z, load_clue
from .view import block_and_chunk, block_channels, channel_sum, load_view, spread, store_view, tiles_of_chunk


@triton.jit(do_not_specialize_on_alignment=VECTORS)
def backward_kernel(
    x, dy, dx, dresidual,  # (N, C, ...) of any strides; dx and dresidual are None where they are not wanted
    residual, signs,  # what tells the derivative of the activation beside x: like x, and bytes; each may be None
    weight, bias,  # (C,) or None
    statistics,  # (2, C): mean, invstd
    dweight, dbias,  # (C,), written, or None
    partials,  # of partials.py: each chunk's sums of dz and of dz (x - mean); then what dx takes of all;
    # if RANKS, then sums (2 C + 1) of this process, and for "gradients" nothing but those of all
    counters,  # of exchange.py, or None
    slope: tl.float64,
    channels, outer, outer_1, outer_2, inner, blocks, chunks, tiles_per_chunk, window,
    x_o0, x_o1, x_o2, x_c, x_i,
    dy_o0, dy_o1, dy_o2, dy_c, dy_i,
    dx_o0, dx_o1, dx_o2, dx_c, dx_i,
    r_o0, r_o1, r_o2, r_c, r_i,
    PHASE: tl.constexpr, TRAINING: tl.constexpr, RANKS: tl.constexpr, ACTIVATION: tl.constexpr,
    ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr,
    OUTER_RANK: tl.constexpr, CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr,
    INNER_TILES: tl.constexpr, FOLD: tl.constexpr, RUN: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
    BLOCK_K: tl.constexpr, SPAN: tl.constexpr, BLOCK_M: tl.constexpr,
    MASK_C: tl.constexpr, MASK_O: tl.constexpr, MASK_I: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Every chunk's sums; then dweight, dbias and dx."""
    if PHASE == "dataflow":
        block, chunk, finishes = dataflow_item(take_ticket(counters), blocks, chunks, window)
        exists = block < blocks
        sums, finishes = exists & (finishes == 0), exists & finishes
    else:
        block, chunk = block_and_chunk(tl.program_id(0), blocks)
        sums, finishes = PHASE == "sums", PHASE == "gradients"
    c = block_channels(block, BLOCK_C, INDEX)
    first, last = tiles_of_chunk(chunk, tiles_per_chunk, outer, inner, BLOCK_O, BLOCK_I, INDEX, FOLD, RUN)
    mean, invstd = load_statistics(statistics, c, channels, ACCUMULATOR)
    scale, shift = scale_and_shift(weight, bias, c, channels, invstd)
    wide_mean = spread(mean, CHANNELS_LAST, FOLD, RUN, BLOCK_I)

    if PHASE != "gradients" and sums:
        sum_dz = tl.zeros([1 if RUN else BLOCK_C, BLOCK_O, BLOCK_I], ACCUMULATOR)
        sum_dz_x = tl.zeros([1 if RUN else BLOCK_C, BLOCK_O, BLOCK_I], ACCUMULATOR)
        for tile in tl.range(first, last, num_stages=STAGES):
            gradient, mask = load_view(
                dy, tile, block, c, channels, outer, outer_1, outer_2, inner, dy_o0, dy_o1, dy_o2, dy_c, dy_i,
                OUTER_RANK, CHANNELS_LAST, ALIGN, INDEX, INNER_TILES, FOLD, RUN,
                BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O, MASK_I,
            )  # fmt: skip
            value, _ = load_view(
                x, tile, block, c, channels, outer, outer_1, outer_2, inner, x_o0, x_o1, x_o2, x_c, x_i,
                OUTER_RANK, CHANNELS_LAST, ALIGN, INDEX, INNER_TILES, FOLD, RUN,
                BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O, MASK_I,
            )  # fmt: skip
            clue = load_clue(
                residual, signs, tile, block, c, channels, outer, outer_1, outer_2, inner, r_o0, r_o1, r_o2, r_c, r_i,
                OUTER_RANK, CHANNELS_LAST, ALIGN, INDEX, INNER_TILES, FOLD, RUN, GROUP,
                BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O, MASK_I,
            )  # fmt: skip
            deviation = value.to(ACCUMULATOR) - wide_mean
            dz = gradient_of_z(
                gradient.to(ACCUMULATOR), deviation, clue, signs, scale, shift, slope,
                ACTIVATION, CHANNELS_LAST, FOLD, RUN, GROUP,
            )  # fmt: skip
            if dresidual is not None:
                store_view(
                    dresidual, dz, tile, block, c, channels, outer, outer_1, outer_2, inner,
                    dx_o0, dx_o1, dx_o2, dx_c, dx_i,
                    OUTER_RANK, CHANNELS_LAST, ALIGN, INDEX, INNER_TILES, FOLD, RUN,
                    BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O, MASK_I,
                )  # fmt: skip
            if dx is not None and not TRAINING:
                gradient = dz * spread(scale, CHANNELS_LAST, FOLD, RUN, BLOCK_I)
                store_view(
                    dx, gradient, tile, block, c, channels, outer, outer_1, outer_2, inner,
                    dx_o0, dx_o1, dx_o2, dx_c, dx_i,
                    OUTER_RANK, CHANNELS_LAST, ALIGN, INDEX, INNER_TILES, FOLD, RUN,
                    BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O, MASK_I,
                )  # fmt: skip
            dz = tl.where(mask, dz, 0.0)
            sum_dz += dz
            sum_dz_x += dz * tl.where(mask, deviation, 0.0)
        if partials is not None:
            chunk_dz = channel_sum(sum_dz, CHANNELS_LAST, FOLD, RUN, BLOCK_C)
            chunk_dz_x = channel_sum(sum_dz_x, CHANNELS_LAST, FOLD, RUN, BLOCK_C)
            rows = rows_of(partials, block, BLOCK_K, SPAN, BLOCK_C, 2, INDEX)
            store_pair(rows, chunk, c, channels, chunk_dz, chunk_dz_x)
            if last_to_add(rows, counters, c, channels, block, blocks, chunk, chunks, BLOCK_K, SPAN, BLOCK_M):
                total_dz, total_dz_x = add_sums(rows, c, channels, chunks, BLOCK_K, SPAN, BLOCK_M)
                values = (tl.cast(outer, INDEX) * inner).to(ACCUMULATOR)
                if RANKS:
                    behind = rows_of(partials, blocks, BLOCK_K, SPAN, BLOCK_C, 2, INDEX)
                    send_sums(behind, c, channels, block, total_dz, total_dz_x, values)
                else:
                    x_factor, offset = coefficients(scale, invstd, total_dz, total_dz_x, values)
                    store_pair(rows, 0, c, channels, x_factor, offset)
                if PHASE == "dataflow":
                    release(counters, block, blocks, chunks, -1, BLOCK_K)
                store_gradients(dweight, dbias, c, channels, invstd, total_dz, total_dz_x)

    if PHASE != "sums" and finishes:
        if PHASE == "dataflow":
            wait(counters, block, blocks, chunk, BLOCK_K)
        if RANKS:
            total_dz, total_dz_x, values = load_sums(partials, c, channels, ACCUMULATOR)
            x_factor, offset = coefficients(scale, invstd, total_dz, total_dz_x, values)
        else:
            rows = rows_of(partials, block, BLOCK_K, SPAN, BLOCK_C, 2, INDEX)
            x_factor, offset = load_pair(rows, 0, c, channels)
        for tile in tl.range(first, last, num_stages=STAGES):
            gradient, _ = load_view(
                dy, tile, block, c, channels, outer, outer_1, outer_2, inner, dy_o0, dy_o1, dy_o2, dy_c, dy_i,
                OUTER_RANK, CHANNELS_LAST, ALIGN, INDEX, INNER_TILES, FOLD, RUN,
                BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O, MASK_I,
            )  # fmt: skip
            value, _ = load_view(
                x, tile, block, c, channels, outer, outer_1, outer_2, inner, x_o0, x_o1, x_o2, x_c, x_i,
                OUTER_RANK, CHANNELS_LAST, ALIGN, INDEX, INNER_TILES, FOLD, RUN,
                BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O, MASK_I,
            )  # fmt: skip
            clue = load_clue(
                residual, signs, tile, block, c, channels, outer, outer_1, outer_2, inner, r_o0, r_o1, r_o2, r_c, r_i,
                OUTER_RANK, CHANNELS_LAST, ALIGN, INDEX, INNER_TILES, FOLD, RUN, GROUP,
                BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O, MASK_I,
            )  # fmt: skip
            deviation = value.to(ACCUMULATOR) - wide_mean
            dz = gradient_of_z(
                gradient.to(ACCUMULATOR), deviation, clue, signs, scale, shift, slope,
                ACTIVATION, CHANNELS_LAST, FOLD, RUN, GROUP,
            )  # fmt: skip
            gradient = input_gradient(dz, deviation, scale, x_factor, offset, CHANNELS_LAST, FOLD, RUN)
            store_view(
                dx, gradient, tile, block, c, channels, outer, outer_1, outer_2, inner, dx_o0, dx_o1, dx_o2, dx_c, dx_i,
                OUTER_RANK, CHANNELS_LAST, ALIGN, INDEX, INNER_TILES, FOLD, RUN,
                BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O, MASK_I,
            )  # fmt: skip
