"""Training forward in chunks of several tiles: the statistics of every chunk, then y, for which x is read again.

PHASE "dataflow" is one launch of items in an order that lets the second reading find x in the L2; "statistics" and
"normalize" are the two halves as launches of their own. The last chunk of a block to arrive merges them all. Channels
whose chunks fit into registers have resident_forward. RANKS processes that share a batch run the halves with their
moments exchanged in between (ranks.py).
"""

import triton
import triton.language as tl

from .affine import store_y
from .channel import VECTORS, load_statistics, scale_and_shift, store_statistics
from .exchange import dataflow_item, release, take_ticket, wait
from .finish import finish_channels
from .partials import rows_of
from .ranks import merge_ranks, send_moments
from .rounding import invstd_of
from .view import (
    block_and_chunk,
    block_channels,
    channel_sum,
    load_view,
    spread,
    tiles_of_chunk,
    values_before,
)
from .welford import centred_moments, finite_or_zero, last_to_merge, mean_of, merge_chunks, store_moments


@triton.jit(do_not_specialize_on_alignment=VECTORS)
def forward_kernel(
    x, y,  # (N, C, ...) of any strides
    residual,  # like x, or None
    weight, bias,  # (C,) or None
    running_mean, running_var,  # (C,) or None, updated in place
    average_factor,  # () or None: a weight of the new statistics that lives on the device, instead of momentum
    num_batches_tracked,  # () or None, counted up; if CUMULATIVE its inverse is the weight
    statistics,  # (2, C), written: mean, invstd
    signs,  # bytes or None, written: a bit an element, whether the activation passes its gradient
    partials,  # of partials.py: each chunk's mean, as centre and offset, M2, and number of values;
    # if RANKS, then moments (3 C + 1) of this process, and for "normalize" nothing but those of all (RANKS, 3 C + 1)
    counters,  # of exchange.py, or None
    momentum: tl.float64, eps: tl.float64, slope: tl.float64,
    channels, outer, outer_1, outer_2, inner, blocks, chunks, tiles_per_chunk, window,
    x_o0, x_o1, x_o2, x_c, x_i,
    y_o0, y_o1, y_o2, y_c, y_i,
    r_o0, r_o1, r_o2, r_c, r_i,
    PHASE: tl.constexpr, CORRECTION: tl.constexpr, CUMULATIVE: tl.constexpr, RANKS: tl.constexpr,
    ACTIVATION: tl.constexpr, ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr,
    OUTER_RANK: tl.constexpr, CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr,
    INNER_TILES: tl.constexpr, FOLD: tl.constexpr, RUN: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
    BLOCK_K: tl.constexpr, SPAN: tl.constexpr, BLOCK_M: tl.constexpr,
    MASK_C: tl.constexpr, MASK_O: tl.constexpr, MASK_I: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Every chunk's mean and M2; the merged statistics and the running buffers; y."""
    if PHASE == "dataflow":
        block, chunk, normalizes = dataflow_item(take_ticket(counters), blocks, chunks, window)
        exists = block < blocks
        sums, normalizes = exists & (normalizes == 0), exists & normalizes
    else:
        block, chunk = block_and_chunk(tl.program_id(0), blocks)
        sums, normalizes = PHASE == "statistics", PHASE == "normalize"
    c = block_channels(block, BLOCK_C, INDEX)
    first, last = tiles_of_chunk(chunk, tiles_per_chunk, outer, inner, BLOCK_O, BLOCK_I, INDEX, FOLD, RUN)

    if PHASE != "normalize" and sums:
        value, mask = load_view(
            x, first, block, c, channels, outer, outer_1, outer_2, inner, x_o0, x_o1, x_o2, x_c, x_i,
            OUTER_RANK, CHANNELS_LAST, ALIGN, INDEX, INNER_TILES, FOLD, RUN,
            BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O, MASK_I,
        )  # fmt: skip
        before = values_before(first, outer, inner, BLOCK_O, BLOCK_I, INNER_TILES, FOLD, RUN)
        count = values_before(first + 1, outer, inner, BLOCK_O, BLOCK_I, INNER_TILES, FOLD, RUN) - before
        mean = mean_of((value,), (), count.to(ACCUMULATOR), ACCUMULATOR, CHANNELS_LAST, FOLD, RUN, BLOCK_C)
        centre = finite_or_zero(mean)
        wide_centre = spread(centre, CHANNELS_LAST, FOLD, RUN, BLOCK_I)
        deviation = value.to(ACCUMULATOR) - tl.where(mask, wide_centre, 0.0)
        squares = deviation * deviation
        for tile in tl.range(first + 1, last, num_stages=STAGES):
            more, mask = load_view(
                x, tile, block, c, channels, outer, outer_1, outer_2, inner, x_o0, x_o1, x_o2, x_c, x_i,
                OUTER_RANK, CHANNELS_LAST, ALIGN, INDEX, INNER_TILES, FOLD, RUN,
                BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O, MASK_I,
            )  # fmt: skip
            further = more.to(ACCUMULATOR) - tl.where(mask, wide_centre, 0.0)
            deviation += further
            squares += further * further
        count = (values_before(last, outer, inner, BLOCK_O, BLOCK_I, INNER_TILES, FOLD, RUN) - before).to(ACCUMULATOR)
        offset, M2 = centred_moments(
            channel_sum(deviation, CHANNELS_LAST, FOLD, RUN, BLOCK_C),
            channel_sum(squares, CHANNELS_LAST, FOLD, RUN, BLOCK_C),
            count,
        )
        rows = rows_of(partials, block, BLOCK_K, SPAN, BLOCK_C, 4, INDEX)
        store_moments(rows, chunk, c, channels, centre, offset, M2, count)
        if last_to_merge(rows, counters, c, channels, block, blocks, chunk, chunks, BLOCK_K, SPAN, BLOCK_M):
            centre, offset, variance = merge_chunks(rows, c, channels, chunks, BLOCK_K, SPAN, BLOCK_M)
            values = (tl.cast(outer, INDEX) * inner).to(ACCUMULATOR)
            if RANKS:
                behind = rows_of(partials, blocks, BLOCK_K, SPAN, BLOCK_C, 4, INDEX)
                send_moments(behind, c, channels, block, centre, offset, variance, values)
            else:
                invstd = invstd_of(variance, eps)
                store_statistics(statistics, c, channels, centre + offset, invstd)
                if PHASE == "dataflow":
                    release(counters, block, blocks, chunks, -1, BLOCK_K)
                finish_channels(
                    centre + offset, variance, values,
                    running_mean, running_var, average_factor, num_batches_tracked, counters, momentum,
                    c, channels, block, blocks, CORRECTION, CUMULATIVE,
                )  # fmt: skip

    if PHASE != "statistics" and normalizes:
        if PHASE == "dataflow":
            wait(counters, block, blocks, chunk, BLOCK_K)
        if RANKS:
            mean, variance, values = merge_ranks(partials, c, channels, RANKS, ACCUMULATOR)
            invstd = invstd_of(variance, eps)
            if chunk == 0:
                store_statistics(statistics, c, channels, mean, invstd)
                finish_channels(
                    mean, variance, values,
                    running_mean, running_var, average_factor, num_batches_tracked, counters, momentum,
                    c, channels, block, blocks, CORRECTION, CUMULATIVE,
                )  # fmt: skip
        else:
            mean, invstd = load_statistics(statistics, c, channels, ACCUMULATOR)
        scale, shift = scale_and_shift(weight, bias, c, channels, invstd)
        for tile in tl.range(first, last, num_stages=STAGES):
            value, _ = load_view(
                x, tile, block, c, channels, outer, outer_1, outer_2, inner, x_o0, x_o1, x_o2, x_c, x_i,
                OUTER_RANK, CHANNELS_LAST, ALIGN, INDEX, INNER_TILES, FOLD, RUN,
                BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O, MASK_I,
            )  # fmt: skip
            store_y(
                value.to(ACCUMULATOR), mean, scale, shift, y, residual, signs, slope,
                tile, block, c, channels, outer, outer_1, outer_2, inner,
                y_o0, y_o1, y_o2, y_c, y_i, r_o0, r_o1, r_o2, r_c, r_i,
                ACTIVATION, OUTER_RANK, CHANNELS_LAST, ALIGN, INDEX, INNER_TILES, FOLD, RUN, GROUP,
                BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O, MASK_I,
            )  # fmt: skip
