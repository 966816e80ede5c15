"""Training forward in one launch, x read once: a chunk is kept in registers until its channels are known (chunk.py).

Of a chunk that finds no room only the first TILES are, and the others read again. With EDGES, tiles are cut from the
aligned interiors of planes, and a chunk has edges beside (edges.py).
"""

import triton
import triton.language as tl

from .affine import store_y
from .channel import VECTORS, load_affine, load_statistics, store_statistics
from .chunk import anew, load_chunk, loaded, packed, tiles_and_parts
from .edges import edges_of, edges_of_y, interior, load_edges, write_edges
from .exchange import meet, my_items, release, wait
from .finish import finish_channels
from .partials import rows_of
from .rounding import invstd_of
from .view import block_channels, sum_to_edges, values_before
from .welford import centre_of, last_to_merge, mean_of, merge_chunks, moments_about, store_moments, sums_about

EVERYONE_MERGES = tl.constexpr(32)
"""So many chunks of a channel, fewer of a block, every program merges itself; of more the last to arrive publishes."""


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
    partials,  # of partials.py: each chunk's mean, as centre and offset, M2, and number of values
    counters,  # of exchange.py, or None
    momentum: tl.float64, eps: tl.float64, slope: tl.float64,
    channels, outer, outer_1, outer_2, inner, blocks, chunks,
    x_o0, x_o1, x_o2, x_c, x_i,
    y_o0, y_o1, y_o2, y_c, y_i,
    r_o0, r_o1, r_o2, r_c, r_i,
    CORRECTION: tl.constexpr, CUMULATIVE: tl.constexpr, ACTIVATION: tl.constexpr,
    ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr,
    OUTER_RANK: tl.constexpr, CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr,
    INNER_TILES: tl.constexpr, FOLD: tl.constexpr, RUN: tl.constexpr, GROUP: tl.constexpr,
    HOLD: tl.constexpr, TILES: tl.constexpr, AT_ONCE: tl.constexpr, TOGETHER: tl.constexpr, STAGES: tl.constexpr,
    EDGES: tl.constexpr, EDGE_TILES: tl.constexpr, LANES: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
    BLOCK_K: tl.constexpr, SPAN: tl.constexpr, BLOCK_M: tl.constexpr,
    MASK_C: tl.constexpr, MASK_O: tl.constexpr, MASK_I: tl.constexpr,
):  # fmt: skip
    """The chunk's exact mean and M2; the channel's, merged in one and the same order; y."""
    begin, end, step = my_items(counters, blocks * chunks, BLOCK_K, AT_ONCE)
    for item in range(begin, end, step):
        block, chunk = item // chunks, (item % chunks).to(INDEX)
        c = block_channels(block, BLOCK_C, INDEX)
        factor, shift = load_affine(weight, bias, c, channels, ACCUMULATOR)
        first, parts = tiles_and_parts(chunk, chunks, outer, inner, TILES, TOGETHER, BLOCK_O, BLOCK_I, INDEX, FOLD, RUN)
        x_in, x_step = interior(x, c, x_c, ALIGN, EDGES)
        held, masks = load_chunk(
            x_in, first, TILES, block, c, channels, outer, outer_1, outer_2, inner, x_o0, x_o1, x_o2, x_step, x_i,
            OUTER_RANK, CHANNELS_LAST, ALIGN, INDEX, INNER_TILES, FOLD, RUN,
            BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O, MASK_I,
        )  # fmt: skip
        edges, edge_masks = load_edges(
            x, chunk, chunks, c, channels, outer, outer_1, outer_2, inner, x_o0, x_o1, x_o2, x_c, x_i,
            OUTER_RANK, ALIGN, INDEX, EDGES, EDGE_TILES, LANES, MASK_C,
        )  # fmt: skip
        held = loaded(held, HOLD)
        before = values_before(first, outer, inner, BLOCK_O, BLOCK_I, INNER_TILES, FOLD, RUN)
        count = values_before(first + TILES, outer, inner, BLOCK_O, BLOCK_I, INNER_TILES, FOLD, RUN) - before
        beside = edges_of(chunk, chunks, outer, EDGES, INDEX)
        mean = mean_of(held, edges, (count + beside).to(ACCUMULATOR), ACCUMULATOR, CHANNELS_LAST, FOLD, RUN, BLOCK_C)
        held = packed(held, HOLD)
        centre = centre_of(mean, x, TOGETHER)
        deviation, squares = sums_about(centre, held, masks, ACCUMULATOR, CHANNELS_LAST, FOLD, RUN, BLOCK_I)
        if TOGETHER:
            for part in tl.range(0, parts, num_stages=STAGES):
                more, more_masks = load_chunk(
                    x_in, first + TILES + part * TOGETHER, TOGETHER,
                    block, c, channels, outer, outer_1, outer_2, inner, x_o0, x_o1, x_o2, x_step, x_i,
                    OUTER_RANK, CHANNELS_LAST, ALIGN, INDEX, INNER_TILES, FOLD, RUN,
                    BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O >> 2 * TILES, MASK_I >> 2 * TILES,
                )  # fmt: skip
                more_deviation, more_squares = sums_about(
                    centre, loaded(more, HOLD), more_masks, ACCUMULATOR, CHANNELS_LAST, FOLD, RUN, BLOCK_I
                )
                deviation, squares = deviation + more_deviation, squares + more_squares
            behind = first + TILES + parts * TOGETHER
            count = values_before(behind, outer, inner, BLOCK_O, BLOCK_I, INNER_TILES, FOLD, RUN) - before
        if EDGES:
            deviation, squares = sum_to_edges(deviation, LANES), sum_to_edges(squares, LANES)
            edge_deviation, edge_squares = sums_about(centre, edges, edge_masks, ACCUMULATOR, False, 0, 0, LANES)
            deviation, squares = deviation + edge_deviation, squares + edge_squares
        count = (count + beside).to(ACCUMULATOR)
        offset, M2 = moments_about(deviation, squares, count, x, TOGETHER, CHANNELS_LAST, FOLD, RUN, BLOCK_C)

        values = (tl.cast(outer, INDEX) * (inner + EDGES)).to(ACCUMULATOR)
        variance, last = M2 / count, True
        if BLOCK_K > 1:
            rows = rows_of(partials, block, BLOCK_K, SPAN, BLOCK_C, 4, INDEX)
            store_moments(rows, chunk, c, channels, centre, offset, M2, count)
            last = last_to_merge(rows, counters, c, channels, block, blocks, chunk, chunks, BLOCK_K, SPAN, BLOCK_M)
        if BLOCK_K == 1 or BLOCK_C * BLOCK_C * BLOCK_K <= EVERYONE_MERGES:
            if BLOCK_K > 1:
                meet(counters, block, blocks, chunk, chunks, last, BLOCK_K)
                centre, offset, variance = merge_chunks(rows, c, channels, chunks, BLOCK_K, SPAN, BLOCK_M)
            mean = centre + offset
            invstd = invstd_of(variance, eps)
            if last:
                store_statistics(statistics, c, channels, mean, invstd)
                finish_channels(
                    mean, variance, values,
                    running_mean, running_var, average_factor, num_batches_tracked, counters, momentum,
                    c, channels, block, blocks, CORRECTION, CUMULATIVE,
                )  # fmt: skip
        else:
            if last:
                centre, offset, variance = merge_chunks(rows, c, channels, chunks, BLOCK_K, SPAN, BLOCK_M)
                invstd = invstd_of(variance, eps)
                store_statistics(statistics, c, channels, centre + offset, invstd)
                release(counters, block, blocks, chunks, chunk, BLOCK_K)
                finish_channels(
                    centre + offset, variance, values,
                    running_mean, running_var, average_factor, num_batches_tracked, counters, momentum,
                    c, channels, block, blocks, CORRECTION, CUMULATIVE,
                )  # fmt: skip
            else:
                wait(counters, block, blocks, chunk, BLOCK_K)
            mean, invstd = load_statistics(statistics, c, channels, ACCUMULATOR)
        held = packed(held, HOLD)
        first = anew(first, HOLD if CHANNELS_LAST or RUN or TOGETHER else None)
        y_in, y_step = interior(y, c, y_c, ALIGN, EDGES)
        r_in, r_step = residual, r_c
        if residual is not None:
            r_in, r_step = interior(residual, c, r_c, ALIGN, EDGES)
        if TOGETHER:
            for part in tl.range(0, parts, num_stages=STAGES):  # the last first, which the L2 still has
                tile = first + TILES + (parts - 1 - part) * TOGETHER
                more, _ = load_chunk(
                    x_in, tile, TOGETHER, block, c, channels, outer, outer_1, outer_2, inner,
                    x_o0, x_o1, x_o2, x_step, x_i,
                    OUTER_RANK, CHANNELS_LAST, ALIGN, INDEX, INNER_TILES, FOLD, RUN,
                    BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O >> 2 * TILES, MASK_I >> 2 * TILES,
                )  # fmt: skip
                write_y(
                    loaded(more, HOLD), mean, factor * invstd, shift, y_in, r_in, signs, slope,
                    tile, block, c, channels, outer, outer_1, outer_2, inner,
                    y_o0, y_o1, y_o2, y_step, y_i, r_o0, r_o1, r_o2, r_step, r_i,
                    ACTIVATION, ACCUMULATOR, OUTER_RANK, CHANNELS_LAST, ALIGN, INDEX, INNER_TILES, FOLD, RUN, GROUP,
                    BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O >> 2 * TILES, MASK_I >> 2 * TILES,
                )  # fmt: skip
        if EDGES:
            chunk = anew(chunk, HOLD)
            added, _ = load_edges(
                residual, chunk, chunks, c, channels, outer, outer_1, outer_2, inner, r_o0, r_o1, r_o2, r_c, r_i,
                OUTER_RANK, ALIGN, INDEX, EDGES, EDGE_TILES, LANES, MASK_C,
            )  # fmt: skip
            write_edges(
                y, edges_of_y(edges, added, mean, factor * invstd, shift, slope, ACTIVATION),
                chunk, chunks, c, channels, outer, outer_1, outer_2, inner, y_o0, y_o1, y_o2, y_c, y_i,
                OUTER_RANK, ALIGN, INDEX, EDGES, LANES, MASK_C,
            )  # fmt: skip
        write_y(
            held, mean, factor * invstd, shift, y_in, r_in, signs, slope,
            first, block, c, channels, outer, outer_1, outer_2, inner,
            y_o0, y_o1, y_o2, y_step, y_i, r_o0, r_o1, r_o2, r_step, r_i,
            ACTIVATION, ACCUMULATOR, OUTER_RANK, CHANNELS_LAST, ALIGN, INDEX, INNER_TILES, FOLD, RUN, GROUP,
            BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O, MASK_I,
        )  # fmt: skip


@triton.jit
def write_y(
    tiles, mean, scale, shift, y, residual, signs, slope,
    first, block, c, channels, outer, outer_1, outer_2, inner,
    y_o0, y_o1, y_o2, y_c, y_i, r_o0, r_o1, r_o2, r_c, r_i,
    ACTIVATION: tl.constexpr, ACCUMULATOR: tl.constexpr,
    OUTER_RANK: tl.constexpr, CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr, INDEX: tl.constexpr,
    INNER_TILES: tl.constexpr, FOLD: tl.constexpr, RUN: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
    MASK_C: tl.constexpr, MASK_O: tl.constexpr, MASK_I: tl.constexpr,
):  # fmt: skip
    """Write y of the tiles from `first` on."""
    for t in tl.static_range(len(tiles) - 1, -1, -1):  # masks of the last tile cost registers if they come last
        store_y(
            tiles[t].to(ACCUMULATOR), mean, scale, shift, y, residual, signs, slope,
            first + t, block, c, channels, outer, outer_1, outer_2, inner,
            y_o0, y_o1, y_o2, y_c, y_i, r_o0, r_o1, r_o2, r_c, r_i,
            ACTIVATION, OUTER_RANK, CHANNELS_LAST, ALIGN, INDEX, INNER_TILES, FOLD, RUN, GROUP,
            BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O >> 2 * t & 3, MASK_I >> 2 * t & 3,
        )  # fmt: skip
