"""Backward in one launch with x and dy read once: a chunk of each is kept until its channels' sums are known.

Of a chunk that finds no room only the first TILES are, and the others read again (chunk.py). With EDGES, tiles are
cut from the aligned interiors of planes, and a chunk has edges beside (edges.py). The formulas are in backward.py.
"""

import triton
import triton.language as tl

from .channel import VECTORS, load_statistics, scale_and_shift
from .chunk import anew, load_chunk, load_clues, loaded, packed, tiles_and_parts, where_loaded
from .edges import add_edge_gradients, edges_of_dx, gradients_of_edges, interior, load_edges, write_edges
from .exchange import meet, my_items, release, wait
from .gradient import coefficients, input_gradient, store_gradients
from .partials import add_sums, last_to_add, load_pair, rows_of, store_pair
from .resident_forward import EVERYONE_MERGES
from .upstream import gradient_of_z
from .view import block_channels, channel_sum, spread, store_view


@triton.jit(do_not_specialize_on_alignment=VECTORS)
def resident_backward_kernel(
    x, dy, dx, dresidual,  # (N, C, ...) of any strides; dx and dresidual are None where they are not wanted
    residual, signs,  # what tells the derivative of the activation beside x: like x, and bytes; each may be None
    weight, bias,  # (C,) or None
    statistics,  # (2, C): mean, invstd
    dweight, dbias,  # (C,), written, or None
    partials,  # of partials.py: each chunk's sums of dz and of dz (x - mean); then what dx takes of all
    counters,  # of exchange.py, or None
    slope: tl.float64,
    channels, outer, outer_1, outer_2, inner, blocks, chunks,
    x_o0, x_o1, x_o2, x_c, x_i,
    dy_o0, dy_o1, dy_o2, dy_c, dy_i,
    dx_o0, dx_o1, dx_o2, dx_c, dx_i,
    r_o0, r_o1, r_o2, r_c, r_i,
    ACTIVATION: tl.constexpr,
    ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr,
    OUTER_RANK: tl.constexpr, CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr,
    INNER_TILES: tl.constexpr, FOLD: tl.constexpr, RUN: tl.constexpr, GROUP: tl.constexpr,
    HOLD: tl.constexpr, TILES: tl.constexpr, AT_ONCE: tl.constexpr, TOGETHER: tl.constexpr, STAGES: tl.constexpr,
    EDGES: tl.constexpr, EDGE_TILES: tl.constexpr, LANES: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
    BLOCK_K: tl.constexpr, SPAN: tl.constexpr, BLOCK_M: tl.constexpr,
    MASK_C: tl.constexpr, MASK_O: tl.constexpr, MASK_I: tl.constexpr,
):  # fmt: skip
    """The chunk's sums; the channel's, added in one and the same order; dx."""
    begin, end, step = my_items(counters, blocks * chunks, BLOCK_K, AT_ONCE)
    for item in range(begin, end, step):
        block, chunk = item // chunks, (item % chunks).to(INDEX)
        c = block_channels(block, BLOCK_C, INDEX)
        first, parts = tiles_and_parts(chunk, chunks, outer, inner, TILES, TOGETHER, BLOCK_O, BLOCK_I, INDEX, FOLD, RUN)
        mean, invstd = load_statistics(statistics, c, channels, ACCUMULATOR)
        scale, shift = scale_and_shift(weight, bias, c, channels, invstd)
        x_in, x_step = interior(x, c, x_c, ALIGN, EDGES)
        dy_in, dy_step = interior(dy, c, dy_c, ALIGN, EDGES)
        dx_in, dx_step = interior(dx, c, dx_c, ALIGN, EDGES)
        r_in, r_step, dresidual_in = residual, r_c, dresidual
        if residual is not None:
            r_in, r_step = interior(residual, c, r_c, ALIGN, EDGES)
        if dresidual is not None:
            dresidual_in, _ = interior(dresidual, c, dx_c, ALIGN, EDGES)
        held_dy, held_x, clues, masks = load_gradients(
            dy_in, x_in, r_in, signs, first, TILES, block, c, channels, outer, outer_1, outer_2, inner,
            dy_o0, dy_o1, dy_o2, dy_step, dy_i, x_o0, x_o1, x_o2, x_step, x_i, r_o0, r_o1, r_o2, r_step, r_i,
            HOLD, OUTER_RANK, CHANNELS_LAST, ALIGN, INDEX, INNER_TILES, FOLD, RUN, GROUP,
            BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O, MASK_I,
        )  # fmt: skip
        edges_dy, edge_masks = load_edges(
            dy, chunk, chunks, c, channels, outer, outer_1, outer_2, inner, dy_o0, dy_o1, dy_o2, dy_c, dy_i,
            OUTER_RANK, ALIGN, INDEX, EDGES, EDGE_TILES, LANES, MASK_C,
        )  # fmt: skip
        edges_x, _ = load_edges(
            x, chunk, chunks, c, channels, outer, outer_1, outer_2, inner, x_o0, x_o1, x_o2, x_c, x_i,
            OUTER_RANK, ALIGN, INDEX, EDGES, EDGE_TILES, LANES, MASK_C,
        )  # fmt: skip
        edges_beside, _ = load_edges(
            residual, chunk, chunks, c, channels, outer, outer_1, outer_2, inner, r_o0, r_o1, r_o2, r_c, r_i,
            OUTER_RANK, ALIGN, INDEX, EDGES, EDGE_TILES, LANES, MASK_C,
        )  # fmt: skip
        sum_dz = tl.zeros([1 if RUN else BLOCK_C, BLOCK_O, BLOCK_I], ACCUMULATOR)
        sum_dz, sum_dz_x = add_gradients(
            sum_dz, sum_dz, held_dy, held_x, clues, masks, dresidual_in, signs, mean, scale, shift, slope,
            first, block, c, channels, outer, outer_1, outer_2, inner, dx_o0, dx_o1, dx_o2, dx_step, dx_i,
            ACTIVATION, ACCUMULATOR, OUTER_RANK, CHANNELS_LAST, ALIGN, INDEX, INNER_TILES, FOLD, RUN, GROUP,
            BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O, MASK_I,
        )  # fmt: skip
        if TOGETHER:
            for part in tl.range(0, parts, num_stages=STAGES):
                tile = first + TILES + part * TOGETHER
                more_dy, more_x, more_clues, more_masks = load_gradients(
                    dy_in, x_in, r_in, signs, tile, TOGETHER, block, c, channels, outer, outer_1, outer_2, inner,
                    dy_o0, dy_o1, dy_o2, dy_step, dy_i, x_o0, x_o1, x_o2, x_step, x_i, r_o0, r_o1, r_o2, r_step, r_i,
                    HOLD, OUTER_RANK, CHANNELS_LAST, ALIGN, INDEX, INNER_TILES, FOLD, RUN, GROUP,
                    BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O >> 2 * TILES, MASK_I >> 2 * TILES,
                )  # fmt: skip
                sum_dz, sum_dz_x = add_gradients(
                    sum_dz, sum_dz_x, more_dy, more_x, more_clues, more_masks,
                    dresidual_in, signs, mean, scale, shift, slope,
                    tile, block, c, channels, outer, outer_1, outer_2, inner, dx_o0, dx_o1, dx_o2, dx_step, dx_i,
                    ACTIVATION, ACCUMULATOR, OUTER_RANK, CHANNELS_LAST, ALIGN, INDEX, INNER_TILES, FOLD, RUN, GROUP,
                    BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O >> 2 * TILES, MASK_I >> 2 * TILES,
                )  # fmt: skip
        if EDGES:
            edges_dz, deviations = gradients_of_edges(
                edges_dy, edges_x, edges_beside, mean, scale, shift, slope, ACTIVATION
            )
            if dresidual is not None:
                write_edges(
                    dresidual, edges_dz,
                    chunk, chunks, c, channels, outer, outer_1, outer_2, inner, dx_o0, dx_o1, dx_o2, dx_c, dx_i,
                    OUTER_RANK, ALIGN, INDEX, EDGES, LANES, MASK_C,
                )  # fmt: skip
            sum_dz, sum_dz_x = add_edge_gradients(sum_dz, sum_dz_x, edges_dz, deviations, edge_masks, LANES, ACTIVATION)
        total_dz = channel_sum(sum_dz, CHANNELS_LAST, FOLD, RUN, BLOCK_C)
        total_dz_x = channel_sum(sum_dz_x, CHANNELS_LAST, FOLD, RUN, BLOCK_C)

        last = True
        if BLOCK_K > 1:
            rows = rows_of(partials, block, BLOCK_K, SPAN, BLOCK_C, 2, INDEX)
            store_pair(rows, chunk, c, channels, total_dz, total_dz_x)
            last = last_to_add(rows, counters, c, channels, block, blocks, chunk, chunks, BLOCK_K, SPAN, BLOCK_M)
        values = (tl.cast(outer, INDEX) * (inner + EDGES)).to(ACCUMULATOR)
        if BLOCK_K == 1 or BLOCK_C * BLOCK_C * BLOCK_K <= EVERYONE_MERGES:
            if BLOCK_K > 1:
                meet(counters, block, blocks, chunk, chunks, last, BLOCK_K)
                total_dz, total_dz_x = add_sums(rows, c, channels, chunks, BLOCK_K, SPAN, BLOCK_M)
            x_factor, offset = coefficients(scale, invstd, total_dz, total_dz_x, values)
            if last:
                store_gradients(dweight, dbias, c, channels, invstd, total_dz, total_dz_x)
        else:
            if last:
                total_dz, total_dz_x = add_sums(rows, c, channels, chunks, BLOCK_K, SPAN, BLOCK_M)
                x_factor, offset = coefficients(scale, invstd, total_dz, total_dz_x, values)
                store_pair(rows, 0, c, channels, x_factor, offset)
                release(counters, block, blocks, chunks, chunk, BLOCK_K)
                store_gradients(dweight, dbias, c, channels, invstd, total_dz, total_dz_x)
            else:
                wait(counters, block, blocks, chunk, BLOCK_K)
            x_factor, offset = load_pair(rows, 0, c, channels)
        held_dy, held_x = packed(held_dy, HOLD, BLOCK_K == 1), packed(held_x, HOLD, BLOCK_K == 1)
        if residual is not None:
            clues = packed(clues, HOLD, BLOCK_K == 1)
        mean, invstd = load_statistics(statistics, c, channels, ACCUMULATOR)
        scale, shift = scale_and_shift(weight, bias, c, channels, invstd)
        first = anew(first, HOLD if TOGETHER else None, BLOCK_K == 1)
        if TOGETHER:
            for part in tl.range(0, parts, num_stages=STAGES):  # the last first, which the L2 still has
                tile = first + TILES + (parts - 1 - part) * TOGETHER
                more_dy, more_x, more_clues, more_masks = load_gradients(
                    dy_in, x_in, r_in, signs, tile, TOGETHER, block, c, channels, outer, outer_1, outer_2, inner,
                    dy_o0, dy_o1, dy_o2, dy_step, dy_i, x_o0, x_o1, x_o2, x_step, x_i, r_o0, r_o1, r_o2, r_step, r_i,
                    HOLD, OUTER_RANK, CHANNELS_LAST, ALIGN, INDEX, INNER_TILES, FOLD, RUN, GROUP,
                    BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O >> 2 * TILES, MASK_I >> 2 * TILES,
                )  # fmt: skip
                write_dx(
                    more_dy, more_x, more_clues, signs, mean, scale, shift, slope, x_factor, offset,
                    dx_in, tile, block, c, channels, outer, outer_1, outer_2, inner, dx_o0, dx_o1, dx_o2, dx_step, dx_i,
                    ACTIVATION, ACCUMULATOR, OUTER_RANK, CHANNELS_LAST, ALIGN, INDEX, INNER_TILES, FOLD, RUN, GROUP,
                    BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O >> 2 * TILES, MASK_I >> 2 * TILES,
                )  # fmt: skip
        if EDGES:
            write_edges(
                dx, edges_of_dx(edges_dz, deviations, scale, x_factor, offset),
                anew(chunk, HOLD, BLOCK_K == 1), chunks, c, channels, outer, outer_1, outer_2, inner,
                dx_o0, dx_o1, dx_o2, dx_c, dx_i,
                OUTER_RANK, ALIGN, INDEX, EDGES, LANES, MASK_C,
            )  # fmt: skip
        write_dx(
            held_dy, held_x, clues, signs, mean, scale, shift, slope, x_factor, offset,
            dx_in, first, block, c, channels, outer, outer_1, outer_2, inner, dx_o0, dx_o1, dx_o2, dx_step, dx_i,
            ACTIVATION, ACCUMULATOR, OUTER_RANK, CHANNELS_LAST, ALIGN, INDEX, INNER_TILES, FOLD, RUN, GROUP,
            BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O, MASK_I,
        )  # fmt: skip


@triton.jit
def load_gradients(
    dy, x, residual, signs, first, TILES: tl.constexpr, block, c, channels, outer, outer_1, outer_2, inner,
    dy_o0, dy_o1, dy_o2, dy_c, dy_i, x_o0, x_o1, x_o2, x_c, x_i, r_o0, r_o1, r_o2, r_c, r_i,
    HOLD: tl.constexpr,
    OUTER_RANK: tl.constexpr, CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr, INDEX: tl.constexpr,
    INNER_TILES: tl.constexpr, FOLD: tl.constexpr, RUN: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
    MASK_C: tl.constexpr, MASK_O: tl.constexpr, MASK_I: tl.constexpr,
):  # fmt: skip
    """Tiles of dy and of x, what z cannot be known without beside x, and the masks; all loads are under way first."""
    tiles_dy, _ = load_chunk(
        dy, first, TILES, block, c, channels, outer, outer_1, outer_2, inner, dy_o0, dy_o1, dy_o2, dy_c, dy_i,
        OUTER_RANK, CHANNELS_LAST, ALIGN, INDEX, INNER_TILES, FOLD, RUN,
        BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O, MASK_I,
    )  # fmt: skip
    tiles_x, masks = load_chunk(
        x, first, TILES, block, c, channels, outer, outer_1, outer_2, inner, x_o0, x_o1, x_o2, x_c, x_i,
        OUTER_RANK, CHANNELS_LAST, ALIGN, INDEX, INNER_TILES, FOLD, RUN,
        BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O, MASK_I,
    )  # fmt: skip
    clues = load_clues(
        residual, signs, first, TILES, block, c, channels, outer, outer_1, outer_2, inner, r_o0, r_o1, r_o2, r_c, r_i,
        OUTER_RANK, CHANNELS_LAST, ALIGN, INDEX, INNER_TILES, FOLD, RUN, GROUP,
        BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O, MASK_I,
    )  # fmt: skip
    tiles_dy, tiles_x = loaded(tiles_dy, HOLD), loaded(tiles_x, HOLD)
    if residual is not None:
        clues = loaded(clues, HOLD)
    return tiles_dy, tiles_x, clues, masks


@triton.jit
def add_gradients(
    sum_dz, sum_dz_x, tiles_dy, tiles_x, clues, masks, dresidual, signs, mean, scale, shift, slope,
    first, block, c, channels, outer, outer_1, outer_2, inner, dx_o0, dx_o1, dx_o2, dx_c, dx_i,
    ACTIVATION: tl.constexpr, ACCUMULATOR: tl.constexpr,
    OUTER_RANK: tl.constexpr, CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr, INDEX: tl.constexpr,
    INNER_TILES: tl.constexpr, FOLD: tl.constexpr, RUN: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
    MASK_C: tl.constexpr, MASK_O: tl.constexpr, MASK_I: tl.constexpr,
):  # fmt: skip
    """The sums of dz and of dz (x - mean), element by element, with these tiles; writes their dresidual if wanted."""
    wide_mean = spread(mean, CHANNELS_LAST, FOLD, RUN, BLOCK_I)
    for t in tl.static_range(len(tiles_x)):
        deviation = tiles_x[t].to(ACCUMULATOR) - wide_mean
        dz = gradient_of_z(
            tiles_dy[t].to(ACCUMULATOR), deviation, clues[t], signs, scale, shift, slope,
            ACTIVATION, CHANNELS_LAST, FOLD, RUN, GROUP,
        )  # fmt: skip
        if dresidual is not None:
            store_view(
                dresidual, dz, first + t, block, c, channels, outer, outer_1, outer_2, inner,
                dx_o0, dx_o1, dx_o2, dx_c, dx_i,
                OUTER_RANK, CHANNELS_LAST, ALIGN, INDEX, INNER_TILES, FOLD, RUN,
                BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O >> 2 * t & 3, MASK_I >> 2 * t & 3,
            )  # fmt: skip
        dz = where_loaded(masks[t], dz, ACTIVATION)
        sum_dz += dz
        sum_dz_x += dz * deviation
    return sum_dz, sum_dz_x


@triton.jit
def write_dx(
    tiles_dy, tiles_x, clues, signs, mean, scale, shift, slope, x_factor, offset,
    dx, first, block, c, channels, outer, outer_1, outer_2, inner, dx_o0, dx_o1, dx_o2, dx_c, dx_i,
    ACTIVATION: tl.constexpr, ACCUMULATOR: tl.constexpr,
    OUTER_RANK: tl.constexpr, CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr, INDEX: tl.constexpr,
    INNER_TILES: tl.constexpr, FOLD: tl.constexpr, RUN: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
    MASK_C: tl.constexpr, MASK_O: tl.constexpr, MASK_I: tl.constexpr,
):  # fmt: skip
    """Write dx of these tiles."""
    wide_mean = spread(mean, CHANNELS_LAST, FOLD, RUN, BLOCK_I)
    for t in tl.static_range(len(tiles_x) - 1, -1, -1):  # masks of the last tile cost registers if they come last
        deviation = tiles_x[t].to(ACCUMULATOR) - wide_mean
        dz = gradient_of_z(
            tiles_dy[t].to(ACCUMULATOR), deviation, clues[t], signs, scale, shift, slope,
            ACTIVATION, CHANNELS_LAST, FOLD, RUN, GROUP,
        )  # fmt: skip
        gradient = input_gradient(dz, deviation, scale, x_factor, offset, CHANNELS_LAST, FOLD, RUN)
        store_view(
            dx, gradient, first + t, block, c, channels, outer, outer_1, outer_2, inner,
            dx_o0, dx_o1, dx_o2, dx_c, dx_i,
            OUTER_RANK, CHANNELS_LAST, ALIGN, INDEX, INNER_TILES, FOLD, RUN,
            BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O >> 2 * t & 3, MASK_I >> 2 * t & 3,
        )  # fmt: skip
