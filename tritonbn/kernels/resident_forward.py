"""Training forward in one launch, x read once: a chunk is kept in registers until its channels are known (chunk.py).

Of a chunk that finds no room only the first TILES are, and the others read again. With EDGES, tiles are cut from the
aligned interiors of planes, and a chunk has edges beside (edges.py).
"""

import triton
import triton.language as tl

from .affine import store_y
from .channel import VECTORS, load_affine, spread_affine, store_statistics
from .chunk import load_chunk, tiles_and_parts, values_before_chunk
from .edges import load_edges, write_y_of_edges
from .exchange import everyone_merges, meet, my_items, release, wait
from .finish import finish_channels, load_running
from .holding import anew, loaded, packed
from .moments import last_to_merge, merge_chunks, moments_of, store_moments
from .partials import load_first_pair, load_row, rows_of, store_result, store_row
from .records import Epilogue, Exchange, Holding, Item, Running, Strided, View
from .rounding import invstd_of
from .view import block_channels, channel_sums, spread, sum_to_edges, values_of_channel
from .welford import add_deviations, centre_of, centred_moments, sums_about


@triton.jit(do_not_specialize_on_alignment=VECTORS)
def resident_forward_kernel(
    x, y,  # (N, C, ...) of any strides
    residual,  # like x, or None
    weight, bias,  # (C,) or None
    running_mean, running_var,  # (C,) or None, updated in place
    average_factor,  # () or None: a weight of the new statistics that lives on the device, instead of momentum
    num_batches_tracked,  # () or None, counted up; if CUMULATIVE its inverse is the weight
    statistics,  # (2, C), written: mean, invstd
    signs,  # bytes or None, written: one bit per element, whether the activation passes its gradient
    partials,  # of partials.py: each chunk's moments (moments.py)
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
    EDGES: tl.constexpr, EDGE_TILES: tl.constexpr, LANES: tl.constexpr, ROOM: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
    BLOCK_K: tl.constexpr, SPAN: tl.constexpr, BLOCK_M: tl.constexpr,
    MASK_C: tl.constexpr, MASK_O: tl.constexpr, MASK_I: tl.constexpr,
):  # fmt: skip
    """The chunk's exact mean and M2; the channel's, merged in one and the same order; y."""
    resident_forward(
        Strided(x, x_o0, x_o1, x_o2, x_c, x_i), Strided(y, y_o0, y_o1, y_o2, y_c, y_i),
        Strided(residual, r_o0, r_o1, r_o2, r_c, r_i), weight, bias, statistics, eps,
        Running(running_mean, running_var, average_factor, num_batches_tracked, momentum, CORRECTION, CUMULATIVE),
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
def resident_forward(x, y, residual, weight, bias, statistics, eps, running, epilogue, exchange, holding, view):
    """All items of one program."""
    chunks = exchange.chunks
    begin, end, step = my_items(exchange, holding.AT_ONCE)
    for number in range(begin, end, step):
        block = number // chunks
        c = block_channels(block, view.BLOCK_C, view.INDEX)
        item = Item(block, (number % chunks).to(view.INDEX), c)
        first, parts = tiles_and_parts(item.chunk, chunks, view, holding)
        given = None
        if exchange.BLOCK_K == 1:
            given = load_given(weight, bias, running, item, view)
        held, edges, centre, sums = measure_chunk(x, first, parts, item, chunks, holding, view)
        affine = channel_affine(
            x, centre, sums, given, weight, bias, statistics, eps, running, item, exchange, holding, view
        )
        held = packed(held, holding.HOLD)
        first = anew(first, holding.HOLD)
        if holding.TOGETHER:
            for part in tl.range(0, parts, num_stages=holding.STAGES):  # the last first, which the L2 still has
                tile = first + holding.TILES + (parts - 1 - part) * holding.TOGETHER
                more, _ = load_chunk(x, tile, holding.TOGETHER, item, view, holding.TILES)
                more = loaded(more, holding.HOLD)
                write_y(more, affine, y, residual, epilogue, tile, item, view, holding, holding.TILES)
        if view.EDGES:
            item = Item(block, anew(item.chunk, holding.HOLD), c)
            edges_residual, _ = load_edges(residual, 0, view.EDGE_TILES, item, chunks, view)
            write_y_of_edges(edges, edges_residual, affine, y, epilogue, 0, item, chunks, view)
        write_y(held, affine, y, residual, epilogue, first, item, view, holding)


@triton.jit
def measure_chunk(x, first, parts, item, chunks, holding, view):
    """What is kept of a chunk, its edges, and the sums of (value - centre) and of its square, element by element."""
    edges, edge_masks = load_edges(x, 0, view.EDGE_TILES, item, chunks, view)
    held, centre, sums = keep_tiles(x, first, item, holding, view)
    wide_centre = spread(centre, view)
    sum_deviation, sum_squares = sums
    if holding.TOGETHER:
        for part in tl.range(0, parts, num_stages=holding.STAGES):
            tile = first + holding.TILES + part * holding.TOGETHER
            more, more_masks = load_chunk(x, tile, holding.TOGETHER, item, view, holding.TILES)
            more = loaded(more, holding.HOLD)
            more_deviation, more_squares = sums_about(wide_centre, more, more_masks, view, holding.HOLD)
            sum_deviation, sum_squares = sum_deviation + more_deviation, sum_squares + more_squares
    if view.EDGES:
        sum_deviation, sum_squares = sum_to_edges(sum_deviation, view.LANES), sum_to_edges(sum_squares, view.LANES)
        edge_deviation, edge_squares = sums_about(wide_centre, edges, edge_masks, view, None)
        sum_deviation, sum_squares = sum_deviation + edge_deviation, sum_squares + edge_squares
    return held, edges, centre, (sum_deviation, sum_squares)


@triton.jit
def keep_tiles(x, first, item, holding, view):
    """The tiles that are kept, the centre that the first has, and the sums about it of all of them.

    While some are added up the next ones are under way, half a chunk ahead.
    """
    AHEAD: tl.constexpr = (holding.TILES + 1) // 2
    kept, masks = load_chunk(x, first, AHEAD, item, view)
    kept = loaded(kept, holding.HOLD)
    centre = centre_of(kept[0], first, view)
    wide_centre = spread(centre, view)
    for t in tl.static_range(holding.TILES):
        if t + AHEAD < holding.TILES:
            next_tiles, next_masks = load_chunk(x, first + (t + AHEAD), 1, item, view, t + AHEAD)
            kept, masks = kept + loaded(next_tiles, holding.HOLD), masks + next_masks
        if t == 0:
            sums = sums_about(wide_centre, (kept[0],), (masks[0],), view, None)
        else:
            sums = add_deviations(sums, wide_centre, kept[t], masks[t], view, holding.HOLD)
    return kept, centre, sums


@triton.jit
def load_given(weight, bias, running, item, view):
    """weight, bias and, for a block's first chunk, the running buffers: before anybody would wait for them."""
    factor, shift = load_affine(weight, bias, item.c, view)
    return factor, shift, load_running(running, item.c, tl.where(item.chunk == 0, view.channels, 0), view)


@triton.jit
def channel_affine(x, centre, sums, given, weight, bias, statistics, eps, running, item, exchange, holding, view):
    """The affine map of all chunks' statistics, from the sums of each; one of its programs finishes a block."""
    c, chunks, values, finishes = item.c, exchange.chunks, values_of_channel(view), True
    count = values_before_chunk(item.chunk + 1, chunks, view, holding)
    count = (count - values_before_chunk(item.chunk, chunks, view, holding)).to(view.ACCUMULATOR)
    sum_deviation, sum_squares = channel_sums(sums[0], sums[1], view)
    offset, M2 = centred_moments(sum_deviation, sum_squares, count)
    if exchange.BLOCK_K > 1:
        rows = rows_of(item.block, moments_of(x), exchange, view)
        store_moments(x, rows, item.chunk, centre, offset, M2, exchange, view)
    if everyone_merges(exchange, view):
        if exchange.BLOCK_K > 1:
            given = load_given(weight, bias, running, item, view)
        factor, shift, old = given
        variance = M2 / count
        if exchange.BLOCK_K > 1:
            meet(item, exchange)
            centre, offset, variance = merge_chunks(x, rows, exchange, holding, view)
            finishes = item.chunk == 0
        mean = centre + offset
        invstd = invstd_of(variance, eps)
        if finishes:
            store_statistics(statistics, c, view, mean, invstd)
            finish_channels(mean, variance, values, old, running, item, exchange, view)
        affine = spread_affine(mean, factor * invstd, shift, view)
    else:
        factor, shift = load_affine(weight, bias, c, view)
        if last_to_merge(x, rows, item, exchange, holding, view):
            old = load_running(running, c, view.channels, view)
            centre, offset, variance = merge_chunks(x, rows, exchange, holding, view)
            mean = centre + offset
            invstd = invstd_of(variance, eps)
            store_result(rows, 0, (mean, factor * invstd), exchange, view)
            store_row(rows, 1, (shift,), exchange, view)
            release(item.block, exchange.chunks - 1, exchange)
            store_statistics(statistics, c, view, mean, invstd)
            finish_channels(mean, variance, values, old, running, item, exchange, view)
        else:
            wait(item, 1, exchange)
        mean, scale = load_first_pair(rows, exchange, view)
        affine = spread_affine(mean, scale, load_row(rows, 0, 1, exchange, view), view)
    return affine


@triton.jit
def write_y(tiles, affine, y, residual, epilogue, first, item, view, holding, AT: tl.constexpr = 0):
    """Write y of the tiles from `first` on."""
    for t in tl.static_range(len(tiles) - 1, -1, -1):  # masks of the last tile cost registers if they come last
        tile = anew(first + t, holding.HOLD)
        store_y(tiles[t], affine, y, residual, epilogue, tile, item, view, AT + t)
