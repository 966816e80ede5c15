"""Training forward in one launch, x read once: a chunk is kept in registers until its channels are known (chunk.py).

Of a chunk that finds no room only the first TILES are, and the others read again. With EDGES, tiles are cut from the
aligned interiors of planes, and a chunk has edges beside (edges.py).
"""

import triton
import triton.language as tl

from .affine import store_y
from .channel import VECTORS, load_affine, load_statistics, store_statistics
from .chunk import anew, load_chunk, loaded, packed, tiles_and_parts
from .edges import edge_count, interior, load_edges, write_edges, y_of_edges
from .exchange import everyone_merges, meet, my_items, release, wait
from .finish import finish_channels
from .moments import last_to_merge, merge_chunks, store_moments
from .partials import rows_of
from .records import Affine, Epilogue, Exchange, Holding, Item, Running, Strided, View
from .rounding import invstd_of
from .view import block_channels, sum_to_edges, values_before, values_of_channel
from .welford import centre_of, mean_of, moments_about, sums_about


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
        factor, shift = load_affine(weight, bias, c, view)  # early: who waits has them already
        first, parts = tiles_and_parts(item.chunk, chunks, view, holding)
        x_in = interior(x, c, view)
        held, edges, centre, offset, M2, count = measure_chunk(x, x_in, first, parts, item, chunks, holding, view)
        mean, invstd = channel_statistics(centre, offset, M2, count, statistics, eps, running, item, exchange, view)
        held = packed(held, holding.HOLD)
        first = anew(first, holding.HOLD if view.CHANNELS_LAST or view.RUN or holding.TOGETHER else None)
        y_in, residual_in = interior(y, c, view), residual
        if residual.base is not None:
            residual_in = interior(residual, c, view)
        affine = Affine(mean, factor * invstd, shift)
        if holding.TOGETHER:
            for part in tl.range(0, parts, num_stages=holding.STAGES):  # the last first, which the L2 still has
                tile = first + holding.TILES + (parts - 1 - part) * holding.TOGETHER
                more, _ = load_chunk(x_in, tile, holding.TOGETHER, item, view, holding.TILES)
                more = loaded(more, holding.HOLD)
                write_y(more, affine, y_in, residual_in, epilogue, tile, item, view, holding.TILES)
        if view.EDGES:
            item = Item(block, anew(item.chunk, holding.HOLD), c)
            edges_residual, _ = load_edges(residual, item, chunks, view)
            write_edges(y, y_of_edges(edges, edges_residual, affine, epilogue, view), item, chunks, view)
        write_y(held, affine, y_in, residual_in, epilogue, first, item, view)


@triton.jit
def measure_chunk(x, x_in, first, parts, item, chunks, holding, view):
    """What is kept of a chunk, its edges, and its moments: the mean as centre and offset, M2, and number of values."""
    held, masks = load_chunk(x_in, first, holding.TILES, item, view)
    edges, edge_masks = load_edges(x, item, chunks, view)
    held = loaded(held, holding.HOLD)
    before = values_before(first, view)
    count = values_before(first + holding.TILES, view) - before
    in_edges = edge_count(item.chunk, chunks, view)
    mean = mean_of(held, edges, (count + in_edges).to(view.ACCUMULATOR), view)
    held = packed(held, holding.HOLD)
    centre = centre_of(mean, x, holding)
    sum_deviation, sum_squares = sums_about(centre, held, masks, view)
    if holding.TOGETHER:
        for part in tl.range(0, parts, num_stages=holding.STAGES):
            tile = first + holding.TILES + part * holding.TOGETHER
            more, more_masks = load_chunk(x_in, tile, holding.TOGETHER, item, view, holding.TILES)
            more_deviation, more_squares = sums_about(centre, loaded(more, holding.HOLD), more_masks, view)
            sum_deviation, sum_squares = sum_deviation + more_deviation, sum_squares + more_squares
        behind = first + holding.TILES + parts * holding.TOGETHER
        count = values_before(behind, view) - before
    if view.EDGES:
        sum_deviation, sum_squares = sum_to_edges(sum_deviation, view.LANES), sum_to_edges(sum_squares, view.LANES)
        edge_deviation, edge_squares = sums_about(centre, edges, edge_masks, view)
        sum_deviation, sum_squares = sum_deviation + edge_deviation, sum_squares + edge_squares
    count = (count + in_edges).to(view.ACCUMULATOR)
    offset, M2 = moments_about(sum_deviation, sum_squares, count, x, holding, view)
    return held, edges, centre, offset, M2, count


@triton.jit
def channel_statistics(centre, offset, M2, count, statistics, eps, running, item, exchange, view):
    """mean and invstd [BLOCK_C] of all chunks, from the moments of each; one of its programs finishes a block."""
    c, values, finishes = item.c, values_of_channel(view), True
    if exchange.BLOCK_K > 1:
        rows = rows_of(item.block, 4, exchange, view)
        store_moments(rows, item.chunk, centre, offset, M2, count, c, exchange, view)
    if everyone_merges(exchange, view):
        variance = M2 / count
        if exchange.BLOCK_K > 1:
            meet(item, exchange)
            centre, offset, variance = merge_chunks(rows, c, exchange, view)
            finishes = item.chunk == 0
        mean = centre + offset
        invstd = invstd_of(variance, eps)
        if finishes:
            store_statistics(statistics, c, view, mean, invstd)
            finish_channels(mean, variance, values, running, item, exchange, view)
    else:
        if last_to_merge(rows, item, exchange, view):
            centre, offset, variance = merge_chunks(rows, c, exchange, view)
            invstd = invstd_of(variance, eps)
            store_statistics(statistics, c, view, centre + offset, invstd)
            release(item.block, exchange.chunks - 1, exchange)
            finish_channels(centre + offset, variance, values, running, item, exchange, view)
        else:
            wait(item, 1, exchange)
        mean, invstd = load_statistics(statistics, c, view)
    return mean, invstd


@triton.jit
def write_y(tiles, affine, y, residual, epilogue, first, item, view, AT: tl.constexpr = 0):
    """Write y of the tiles from `first` on."""
    for t in tl.static_range(len(tiles) - 1, -1, -1):  # masks of the last tile cost registers if they come last
        store_y(tiles[t], affine, y, residual, epilogue, first + t, item, view, AT + t)
