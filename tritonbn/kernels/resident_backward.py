"""Backward in one launch with x and dy read once: a chunk of each is kept until its channels' sums are known.

Of a chunk that finds no room only the first TILES are, and the others read again (chunk.py). With EDGES, tiles are
cut from the aligned interiors of planes, and a chunk has edges beside (edges.py). The formulas are in backward.py.
"""

import triton
import triton.language as tl

from .channel import VECTORS, load_affine, load_affine_map, load_statistics, spread_affine
from .chunk import load_chunk, load_clues, tiles_and_parts
from .edges import add_edge_gradients, dx_of_edges, gradients_of_edges, load_edge_clues, load_edges, write_edges
from .exchange import everyone_merges, meet, my_items, release, wait
from .gradient import coefficients, input_gradient, store_gradients
from .holding import anew, in_turn, loaded, packed
from .partials import load_first_pair, rows_of, store_result, store_row
from .records import Epilogue, Exchange, Holding, Item, Strided, View
from .sums import add_sums, last_to_add
from .upstream import dz_and_deviation, masked_dz
from .view import block_channels, channel_sums, spread, store_tile, sum_to_edges, values_of_channel, zero_tile


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
    EDGES: tl.constexpr, EDGE_TILES: tl.constexpr, LANES: tl.constexpr, ROOM: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
    BLOCK_K: tl.constexpr, SPAN: tl.constexpr, BLOCK_M: tl.constexpr,
    MASK_C: tl.constexpr, MASK_O: tl.constexpr, MASK_I: tl.constexpr,
):  # fmt: skip
    """The chunk's sums; the channel's, added in one and the same order; dx."""
    resident_backward(
        Strided(x, x_o0, x_o1, x_o2, x_c, x_i), Strided(dy, dy_o0, dy_o1, dy_o2, dy_c, dy_i),
        Strided(dx, dx_o0, dx_o1, dx_o2, dx_c, dx_i), Strided(dresidual, dx_o0, dx_o1, dx_o2, dx_c, dx_i),
        Strided(residual, r_o0, r_o1, r_o2, r_c, r_i), weight, bias, statistics, dweight, dbias,
        Epilogue(signs, slope, ACTIVATION, GROUP),
        Exchange(partials, counters, blocks, chunks, BLOCK_K, SPAN, BLOCK_M),
        Holding(HOLD, TILES, TOGETHER, STAGES, AT_ONCE),
        View(
            channels, outer, outer_1, outer_2, inner, ACCUMULATOR, INDEX, OUTER_RANK, CHANNELS_LAST, ALIGN,
            BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O, MASK_I, INNER_TILES, FOLD, RUN, EDGES, EDGE_TILES, LANES,
            ROOM,
        ),
    )  # fmt: skip


@triton.jit
def resident_backward(
    x, dy, dx, dresidual, residual, weight, bias, statistics, dweight, dbias, epilogue, exchange, holding, view
):
    """All items of one program."""
    ALONE: tl.constexpr = exchange.BLOCK_K == 1
    IN_TURN: tl.constexpr = None if ALONE else holding.HOLD  # alone it costs a register more than it saves
    chunks = exchange.chunks
    begin, end, step = my_items(exchange, holding.AT_ONCE)
    for number in range(begin, end, step):
        block = number // chunks
        c = block_channels(block, view.BLOCK_C, view.INDEX)
        item = Item(block, (number % chunks).to(view.INDEX), c)
        first, parts = tiles_and_parts(item.chunk, chunks, view, holding)
        mean, invstd = load_statistics(statistics, c, view)
        scale, shift = load_affine(weight, bias, c, view)
        scale *= invstd
        affine = spread_affine(mean, scale, shift, view)
        edges_dy, edge_masks = load_edges(dy, 0, view.EDGE_TILES, item, chunks, view)
        edges_x, _ = load_edges(x, 0, view.EDGE_TILES, item, chunks, view)
        edge_clues = load_edge_clues(residual, epilogue, 0, view.EDGE_TILES, item, chunks, view)
        held_dy, held_x, clues, sum_dz, sum_dz_x = keep_gradients(
            dy, x, residual, dresidual, affine, epilogue, first, item, view, holding, IN_TURN
        )
        if holding.TOGETHER:
            for part in tl.range(0, parts, num_stages=holding.STAGES):
                tile = first + holding.TILES + part * holding.TOGETHER
                more_dy, more_x, more_clues, more_masks = load_gradients(
                    dy, x, residual, epilogue, tile, holding.TOGETHER, item, view, holding, holding.TILES
                )
                sum_dz, sum_dz_x = add_gradients(
                    sum_dz, sum_dz_x, more_dy, more_x, more_clues, more_masks, dresidual, affine, epilogue, tile,
                    item, view, IN_TURN, holding.TILES,
                )  # fmt: skip
        if view.EDGES:
            edges_dz, deviations = gradients_of_edges(edges_dy, edges_x, edge_clues, affine, epilogue, view)
            if dresidual.base is not None:
                write_edges(dresidual, edges_dz, 0, item, chunks, view)
            sum_dz, sum_dz_x = sum_to_edges(sum_dz, view.LANES), sum_to_edges(sum_dz_x, view.LANES)
            sum_dz, sum_dz_x = add_edge_gradients(sum_dz, sum_dz_x, edges_dz, deviations, edge_masks, epilogue, view)
        if not ALONE:  # anew: no register had to keep it meanwhile
            affine = load_affine_map(statistics, weight, bias, c, view)
        x_factor, offset = channel_coefficients(sum_dz, sum_dz_x, scale, invstd, dweight, dbias, item, exchange, view)
        if ALONE:
            affine = load_affine_map(statistics, weight, bias, c, view)
        held_dy, held_x = packed(held_dy, holding.HOLD, ALONE), packed(held_x, holding.HOLD, ALONE)
        if residual.base is not None:
            clues = packed(clues, holding.HOLD, ALONE)
        first = anew(first, holding.HOLD if holding.TOGETHER else None, ALONE)
        if holding.TOGETHER:
            for part in tl.range(0, parts, num_stages=holding.STAGES):  # the last first, which the L2 still has
                tile = first + holding.TILES + (parts - 1 - part) * holding.TOGETHER
                more_dy, more_x, more_clues, more_masks = load_gradients(
                    dy, x, residual, epilogue, tile, holding.TOGETHER, item, view, holding, holding.TILES
                )
                write_dx(
                    more_dy, more_x, more_clues, affine, x_factor, offset, dx, epilogue, tile, item, view,
                    holding.TILES,
                )  # fmt: skip
        if view.EDGES:
            item = Item(block, anew(item.chunk, holding.HOLD, ALONE), c)
            write_edges(dx, dx_of_edges(edges_dz, deviations, affine.scale, x_factor, offset), 0, item, chunks, view)
        write_dx(held_dy, held_x, clues, affine, x_factor, offset, dx, epilogue, first, item, view)


@triton.jit
def keep_gradients(
    dy, x, residual, dresidual, affine, epilogue, first, item, view, holding, IN_TURN: tl.constexpr
):  # fmt: skip
    """The tiles that are kept, of dy, of x and what z depends on beside x; the sums of all of them.

    While some are added up the next ones are under way, half a chunk ahead.
    """
    AHEAD: tl.constexpr = (holding.TILES + 1) // 2
    kept_dy, kept_x, clues, masks = load_gradients(dy, x, residual, epilogue, first, AHEAD, item, view, holding)
    sum_dz, sum_dz_x = zero_tile(view), zero_tile(view)
    for t in tl.static_range(holding.TILES):
        if t + AHEAD < holding.TILES:
            next_dy, next_x, next_clues, next_masks = load_gradients(
                dy, x, residual, epilogue, first + (t + AHEAD), 1, item, view, holding, t + AHEAD
            )
            kept_dy, kept_x = kept_dy + next_dy, kept_x + next_x
            clues, masks = clues + next_clues, masks + next_masks
        sum_dz, sum_dz_x = add_gradients(
            sum_dz, sum_dz_x, (kept_dy[t],), (kept_x[t],), (clues[t],), (masks[t],), dresidual, affine, epilogue,
            first + t, item, view, IN_TURN, t,
        )  # fmt: skip
    return kept_dy, kept_x, clues, sum_dz, sum_dz_x


@triton.jit
def load_gradients(dy, x, residual, epilogue, first, TILES: tl.constexpr, item, view, holding, AT: tl.constexpr = 0):
    """Tiles of dy and of x, what z depends on beside x, and the masks; all loads are under way first."""
    tiles_dy, _ = load_chunk(dy, first, TILES, item, view, AT)
    tiles_x, masks = load_chunk(x, first, TILES, item, view, AT)
    clues = load_clues(residual, epilogue, first, TILES, item, view, AT)
    tiles_dy, tiles_x = loaded(tiles_dy, holding.HOLD), loaded(tiles_x, holding.HOLD)
    if residual.base is not None:
        clues = loaded(clues, holding.HOLD)
    return tiles_dy, tiles_x, clues, masks


@triton.jit
def add_gradients(
    sum_dz, sum_dz_x, tiles_dy, tiles_x, clues, masks, dresidual, affine, epilogue, first, item, view,
    HOLD: tl.constexpr, AT: tl.constexpr = 0,
):  # fmt: skip
    """The sums of dz and of dz (x - mean), element by element, with these tiles; writes their dresidual if wanted."""
    for t in tl.static_range(len(tiles_x)):
        tiles, sums = in_turn((tiles_dy[t], tiles_x[t]), (sum_dz, sum_dz_x), HOLD)
        dz, deviation = dz_and_deviation(tiles[0], tiles[1], clues[t], affine, epilogue, view)
        if dresidual.base is not None:
            store_tile(dresidual, dz, first + t, item, view, AT + t)
        dz = masked_dz(dz, masks[t], epilogue)
        sum_dz, sum_dz_x = sums[0] + dz, sums[1] + dz * deviation
    return sum_dz, sum_dz_x


@triton.jit
def channel_coefficients(sum_dz, sum_dz_x, scale, invstd, dweight, dbias, item, exchange, view):
    """x_factor and offset of all chunks (gradient.py) for a tile's elements, from the sums of each, element by element.

    One of its programs writes the gradients of a block.
    """
    c, values, finishes = item.c, values_of_channel(view), True
    total_dz, total_dz_x = channel_sums(sum_dz, sum_dz_x, view)
    if exchange.BLOCK_K > 1:
        rows = rows_of(item.block, 2, exchange, view)
        store_row(rows, item.chunk, (total_dz, total_dz_x), exchange, view)
    if everyone_merges(exchange, view):
        if exchange.BLOCK_K > 1:
            meet(item, exchange)
            total_dz, total_dz_x = add_sums(rows, exchange, view)
            finishes = item.chunk == 0
        x_factor, offset = coefficients(scale, invstd, total_dz, total_dz_x, values)
        if finishes:
            store_gradients(dweight, dbias, c, view, invstd, total_dz, total_dz_x)
    else:
        if last_to_add(rows, item, exchange, view):
            total_dz, total_dz_x = add_sums(rows, exchange, view)
            x_factor, offset = coefficients(scale, invstd, total_dz, total_dz_x, values)
            store_result(rows, 0, (x_factor, offset), exchange, view)
            release(item.block, exchange.chunks - 1, exchange)
            store_gradients(dweight, dbias, c, view, invstd, total_dz, total_dz_x)
        else:
            wait(item, 1, exchange)
        x_factor, offset = load_first_pair(rows, exchange, view)
    return spread(x_factor, view), spread(offset, view)


@triton.jit
def write_dx(tiles_dy, tiles_x, clues, affine, x_factor, offset, dx, epilogue, first, item, view, AT: tl.constexpr = 0):
    """Write dx of these tiles."""
    for t in tl.static_range(len(tiles_x) - 1, -1, -1):  # masks of the last tile cost registers if they come last
        dz, deviation = dz_and_deviation(tiles_dy[t], tiles_x[t], clues[t], affine, epilogue, view)
        gradient = input_gradient(dz, deviation, affine.scale, x_factor, offset)
        store_tile(dx, gradient, first + t, item, view, AT + t)
