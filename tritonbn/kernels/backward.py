"""Backward in chunks of several tiles: the sums of every chunk, then dx, for which x and dy are read again.

With xhat = (x - mean) invstd, n elements per channel, dz the gradient before the activation (Ioffe and Szegedy, 2015):
dbias = sum dz, dweight = sum dz xhat, dx = weight invstd (dz - dbias / n - xhat dweight / n).
PHASE "dataflow" is one launch of items in an order that lets the second reading find its tensors in the L2; "sums" and
"gradients" are the two halves as launches of their own. The last chunk of a block to arrive merges them all.
RANKS processes that share a batch run these halves with their sums added up in between (ranks.py).
With given statistics (TRAINING false) dx = weight invstd dz, which "sums" writes, being all there is to do.
"""

import triton
import triton.language as tl

from .channel import VECTORS, load_affine_map, load_scale
from .edges import add_edge_gradients, dx_of_edges, edge_tiles, load_dz_of_edges, write_edges
from .exchange import dataflow_item, release, wait
from .gradient import coefficients, input_gradient, store_gradients
from .partials import load_first_pair, rows_of, store_result, store_row
from .ranks import load_sums, send_sums
from .records import Epilogue, Exchange, Item, Strided, View
from .sums import add_sums, last_to_add
from .upstream import load_dz
from .view import (
    block_and_chunk,
    block_channels,
    channel_sums,
    spread,
    store_tile,
    sum_to_edges,
    tiles_of_chunk,
    values_of_channel,
    zero_tile,
)


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
    EDGES: tl.constexpr, LANES: tl.constexpr, ROOM: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
    BLOCK_K: tl.constexpr, SPAN: tl.constexpr, BLOCK_M: tl.constexpr,
    MASK_C: tl.constexpr, MASK_O: tl.constexpr, MASK_I: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Every chunk's sums; then dweight, dbias and dx."""
    backward(
        Strided(x, x_o0, x_o1, x_o2, x_c, x_i), Strided(dy, dy_o0, dy_o1, dy_o2, dy_c, dy_i),
        Strided(dx, dx_o0, dx_o1, dx_o2, dx_c, dx_i), Strided(dresidual, dx_o0, dx_o1, dx_o2, dx_c, dx_i),
        Strided(residual, r_o0, r_o1, r_o2, r_c, r_i), weight, bias, statistics, dweight, dbias,
        Epilogue(signs, slope, ACTIVATION, GROUP),
        Exchange(partials, counters, blocks, chunks, BLOCK_K, SPAN, BLOCK_M),
        View(
            channels, outer, outer_1, outer_2, inner, ACCUMULATOR, INDEX, OUTER_RANK, CHANNELS_LAST, ALIGN,
            BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O, MASK_I, INNER_TILES, FOLD, RUN, EDGES, 0, LANES, ROOM,
        ),
        tiles_per_chunk, window, PHASE, TRAINING, RANKS, STAGES,
    )  # fmt: skip


@triton.jit
def backward(
    x, dy, dx, dresidual, residual, weight, bias, statistics, dweight, dbias, epilogue, exchange, view,
    tiles_per_chunk, window, PHASE: tl.constexpr, TRAINING: tl.constexpr, RANKS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One item, or one half of it."""
    if PHASE == "dataflow":
        block, chunk, differentiates = dataflow_item(exchange, window)
        exists = block < exchange.blocks
        adds, differentiates = exists & (differentiates == 0), exists & differentiates
    else:
        block, chunk = block_and_chunk(tl.program_id(0), exchange.blocks)
        adds, differentiates = PHASE == "sums", PHASE == "gradients"
    c = block_channels(block, view.BLOCK_C, view.INDEX)
    item = Item(block, chunk, c)
    first, last = tiles_of_chunk(chunk, tiles_per_chunk, view)
    affine = load_affine_map(statistics, weight, bias, c, view)

    if PHASE != "gradients" and adds:
        sum_dz, sum_dz_x = zero_tile(view), zero_tile(view)
        for tile in tl.range(first, last, num_stages=STAGES):
            dz, deviation, mask = load_dz(x, dy, residual, affine, epilogue, tile, item, view)
            if dresidual.base is not None:
                store_tile(dresidual, dz, tile, item, view)
            if dx.base is not None and not TRAINING:
                store_tile(dx, dz * affine.scale, tile, item, view)
            dz = tl.where(mask, dz, 0.0)
            sum_dz += dz
            sum_dz_x += dz * tl.where(mask, deviation, 0.0)
        if view.EDGES:
            sum_dz, sum_dz_x = sum_to_edges(sum_dz, view.LANES), sum_to_edges(sum_dz_x, view.LANES)
            for t in range(edge_tiles(exchange.chunks, view)):
                edges_dz, deviations, masks = load_dz_of_edges(
                    x, dy, residual, affine, epilogue, t, item, exchange.chunks, view
                )
                if dresidual.base is not None:
                    write_edges(dresidual, edges_dz, t, item, exchange.chunks, view)
                if dx.base is not None and not TRAINING:
                    write_edges(dx, (edges_dz[0] * affine.scale,), t, item, exchange.chunks, view)
                sum_dz, sum_dz_x = add_edge_gradients(sum_dz, sum_dz_x, edges_dz, deviations, masks, epilogue, view)
        if exchange.partials is not None:  # None where nobody wants the sums
            rows = rows_of(block, 2, exchange, view)
            store_row(rows, chunk, channel_sums(sum_dz, sum_dz_x, view), exchange, view)
            if last_to_add(rows, item, exchange, view):
                scale, invstd = load_scale(statistics, weight, c, view)
                total_dz, total_dz_x = add_sums(rows, exchange, view)
                values = values_of_channel(view)
                if RANKS:
                    send_sums(rows_of(exchange.blocks, 2, exchange, view), item, view, total_dz, total_dz_x, values)
                else:
                    x_factor, offset = coefficients(scale, invstd, total_dz, total_dz_x, values)
                    store_result(rows, 0, (x_factor, offset), exchange, view)
                if PHASE == "dataflow":
                    release(block, exchange.chunks, exchange)
                store_gradients(dweight, dbias, c, view, invstd, total_dz, total_dz_x)

    if PHASE != "sums" and differentiates:
        if PHASE == "dataflow":
            wait(item, 1, exchange)
        if RANKS:
            total_dz, total_dz_x, values = load_sums(exchange.partials, c, view)
            scale, invstd = load_scale(statistics, weight, c, view)
            x_factor, offset = coefficients(scale, invstd, total_dz, total_dz_x, values)
        else:
            x_factor, offset = load_first_pair(rows_of(block, 2, exchange, view), exchange, view)
        x_factor, offset = spread(x_factor, view), spread(offset, view)
        for tile in tl.range(first, last, num_stages=STAGES):
            dz, deviation, _ = load_dz(x, dy, residual, affine, epilogue, tile, item, view)
            store_tile(dx, input_gradient(dz, deviation, affine.scale, x_factor, offset), tile, item, view)
        if view.EDGES:
            for t in range(edge_tiles(exchange.chunks, view)):
                edges_dz, deviations, _ = load_dz_of_edges(
                    x, dy, residual, affine, epilogue, t, item, exchange.chunks, view
                )
                gradients = dx_of_edges(edges_dz, deviations, affine.scale, x_factor, offset)
                write_edges(dx, gradients, t, item, exchange.chunks, view)
