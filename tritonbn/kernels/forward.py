"""Training forward in chunks of several tiles: the statistics of every chunk, then y, for which x is read again.

PHASE "dataflow" is one launch of items in an order that lets the second reading find x in the L2; "statistics" and
"normalize" are the two halves as launches of their own. The last chunk of a block to arrive merges them all. Channels
whose chunks fit into registers have resident_forward. RANKS processes that share a batch run the halves with their
moments exchanged in between (ranks.py).
"""

import triton
import triton.language as tl

from .affine import store_y
from .channel import VECTORS, load_affine, load_affine_map, spread_affine, store_statistics
from .chunk import values_before_chunk
from .edges import edge_tiles, load_edges, write_y_of_edges
from .exchange import dataflow_item, release, wait
from .finish import finish_channels, load_running
from .moments import last_to_merge, merge_chunks, moments_of, store_moments
from .partials import rows_of
from .ranks import merge_ranks, send_moments
from .records import Epilogue, Exchange, Holding, Item, Running, Strided, View
from .rounding import invstd_of, product
from .view import (
    block_and_chunk,
    block_channels,
    channel_sums,
    load_tile,
    spread,
    sum_to_edges,
    tiles_of_chunk,
    values_of_channel,
)
from .welford import centre_of, centred_moments, sums_about
from .wide import wide


@triton.jit(do_not_specialize_on_alignment=VECTORS)
def forward_kernel(
    x, y,  # (N, C, ...) of any strides
    residual,  # like x, or None
    weight, bias,  # (C,) or None
    running_mean, running_var,  # (C,) or None, updated in place
    average_factor,  # () or None: a weight of the new statistics that lives on the device, instead of momentum
    num_batches_tracked,  # () or None, counted up; if CUMULATIVE its inverse is the weight
    statistics,  # (2, C), written: mean, invstd
    signs,  # bytes or None, written: one bit per element, whether the activation passes its gradient
    partials,  # of partials.py: each chunk's moments (moments.py);
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
    EDGES: tl.constexpr, LANES: tl.constexpr, ROOM: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
    BLOCK_K: tl.constexpr, SPAN: tl.constexpr, BLOCK_M: tl.constexpr,
    MASK_C: tl.constexpr, MASK_O: tl.constexpr, MASK_I: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Every chunk's mean and M2; the merged statistics and the running buffers; y."""
    forward(
        Strided(x, x_o0, x_o1, x_o2, x_c, x_i), Strided(y, y_o0, y_o1, y_o2, y_c, y_i),
        Strided(residual, r_o0, r_o1, r_o2, r_c, r_i), weight, bias, statistics, eps,
        Running(running_mean, running_var, average_factor, num_batches_tracked, momentum, CORRECTION, CUMULATIVE),
        Epilogue(signs, slope, ACTIVATION, GROUP),
        Exchange(partials, counters, blocks, chunks, BLOCK_K, SPAN, BLOCK_M),
        View(
            channels, outer, outer_1, outer_2, inner, ACCUMULATOR, INDEX, OUTER_RANK, CHANNELS_LAST, ALIGN,
            BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O, MASK_I, INNER_TILES, FOLD, RUN, EDGES, 0, LANES, ROOM,
        ),
        Holding(None, tiles_per_chunk, 0, STAGES, 0), window, PHASE, RANKS,
    )  # fmt: skip


@triton.jit
def forward(
    x, y, residual, weight, bias, statistics, eps, running, epilogue, exchange, view, holding, window,
    PHASE: tl.constexpr, RANKS: tl.constexpr,
):  # fmt: skip
    """One item, or one half of it."""
    if PHASE == "dataflow":
        block, chunk, normalizes = dataflow_item(exchange, window)
        exists = block < exchange.blocks
        measures, normalizes = exists & (normalizes == 0), exists & normalizes
    else:
        block, chunk = block_and_chunk(tl.program_id(0), exchange.blocks)
        measures, normalizes = PHASE == "statistics", PHASE == "normalize"
    c = block_channels(block, view.BLOCK_C, view.INDEX)
    item = Item(block, chunk, c)
    first, last = tiles_of_chunk(chunk, holding.TILES, view)

    if PHASE != "normalize" and measures:
        value, mask = load_tile(x, first, item, view)
        centre = centre_of(value, first, view)
        wide_centre = spread(centre, view)
        sum_deviation = wide(value, view) - tl.where(mask, wide_centre, 0.0)
        sum_squares = product(sum_deviation, sum_deviation)
        for tile in tl.range(first + 1, last, num_stages=holding.STAGES):
            more, mask = load_tile(x, tile, item, view)
            deviation = wide(more, view) - tl.where(mask, wide_centre, 0.0)
            sum_deviation += deviation
            sum_squares += deviation * deviation
        if view.EDGES:
            sum_deviation, sum_squares = sum_to_edges(sum_deviation, view.LANES), sum_to_edges(sum_squares, view.LANES)
            for t in range(edge_tiles(exchange.chunks, view)):
                edges, masks = load_edges(x, t, 1, item, exchange.chunks, view)
                more_deviation, more_squares = sums_about(wide_centre, edges, masks, view, None)
                sum_deviation, sum_squares = sum_deviation + more_deviation, sum_squares + more_squares
        count = values_before_chunk(chunk + 1, exchange.chunks, view, holding)
        count = (count - values_before_chunk(chunk, exchange.chunks, view, holding)).to(view.ACCUMULATOR)
        sum_deviation, sum_squares = channel_sums(sum_deviation, sum_squares, view)
        offset, M2 = centred_moments(sum_deviation, sum_squares, count)
        rows = rows_of(block, moments_of(x), exchange, view)
        store_moments(x, rows, chunk, centre, offset, M2, exchange, view)
        if last_to_merge(x, rows, item, exchange, holding, view):
            if not RANKS:  # under way while the chunks are merged
                old = load_running(running, c, view.channels, view)
            centre, offset, variance = merge_chunks(x, rows, exchange, holding, view)
            if RANKS:
                sent = rows_of(exchange.blocks, moments_of(x), exchange, view)
                send_moments(sent, item, view, centre, offset, variance, values_of_channel(view))
            else:
                mean, invstd = centre + offset, invstd_of(variance, eps)
                store_statistics(statistics, c, view, mean, invstd)
                if PHASE == "dataflow":
                    release(block, exchange.chunks, exchange)
                finish_channels(mean, variance, values_of_channel(view), old, running, item, exchange, view)

    if PHASE != "statistics" and normalizes:
        if PHASE == "dataflow":
            wait(item, 1, exchange)
        if RANKS:
            mean, variance, values = merge_ranks(exchange.partials, c, view, RANKS)
            invstd = invstd_of(variance, eps)
            if chunk == 0:
                store_statistics(statistics, c, view, mean, invstd)
                old = load_running(running, c, view.channels, view)
                finish_channels(mean, variance, values, old, running, item, exchange, view)
            factor, shift = load_affine(weight, bias, c, view)
            affine = spread_affine(mean, factor * invstd, shift, view)
        else:
            affine = load_affine_map(statistics, weight, bias, c, view)
        for tile in tl.range(first, last, num_stages=holding.STAGES):
            value, _ = load_tile(x, tile, item, view)
            store_y(value, affine, y, residual, epilogue, tile, item, view)
        if view.EDGES:
            for t in range(edge_tiles(exchange.chunks, view)):
                edges, _ = load_edges(x, t, 1, item, exchange.chunks, view)
                edges_residual, _ = load_edges(residual, t, 1, item, exchange.chunks, view)
                write_y_of_edges(edges, edges_residual, affine, y, epilogue, t, item, exchange.chunks, view)
