"""Sample-wise forward: each row normalized by its own statistics (Keras, mode 1).

sigma = sqrt(variance + eps), xhat = (x - mean) / (sigma + eps), y = weight xhat + bias. A row that a tile holds is read
once. A longer one is read twice: one program takes the whole row (PHASE "both"), or several take a chunk of columns
each, in two launches, "statistics" and "normalize", which merges the chunks. There every lane of a tile keeps its own
Welford mean and M2 over the tiles of a chunk; lanes, and then chunks, merge by Chan's rule, all means being relative to
the row's first element.
"""

import triton
import triton.language as tl

from .channel import VECTORS, load_channels
from .records import Strided, View
from .rounding import product, reciprocal, square_root
from .sample_rows import (
    chunk_columns,
    columns_before,
    columns_of_lanes,
    load_chunk_pairs,
    load_parts,
    pairs_of_chunk,
    parts_exist,
    row_numbers,
    row_sum,
    store_parts,
    store_row_pair,
)
from .tile import chunk_tiles, over_tile, tile_count, tile_indices
from .view import block_channels
from .welford import centred_moments, finite_or_zero, merge_parts, welford_step


@triton.jit(do_not_specialize_on_alignment=VECTORS)
def sample_short_forward_kernel(
    x, y,  # (..., C) of any strides
    weight, bias,  # (C,) or None
    statistics,  # (2, rows), written: mean, sigma; or None
    eps: tl.float64,
    channels, outer, outer_1, outer_2, inner, run_tiles,
    x_o0, x_o1, x_o2, x_c, x_i,
    y_o0, y_o1, y_o2, y_c, y_i,
    ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr,
    OUTER_RANK: tl.constexpr, CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
    MASK_C: tl.constexpr, MASK_O: tl.constexpr, MASK_I: tl.constexpr,
):  # fmt: skip
    """The exact mean of each row, its centred moments, and y, all from the tile in registers."""
    sample_short_forward(
        Strided(x, x_o0, x_o1, x_o2, x_c, x_i), Strided(y, y_o0, y_o1, y_o2, y_c, y_i),
        weight, bias, statistics, eps,
        View(
            channels, outer, outer_1, outer_2, inner, ACCUMULATOR, INDEX, OUTER_RANK, CHANNELS_LAST, ALIGN,
            BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O, MASK_I,
        ),
        run_tiles,
    )  # fmt: skip


@triton.jit
def sample_short_forward(x, y, weight, bias, statistics, eps, view, run_tiles):
    """A run of row tiles."""
    first, last = chunk_tiles(tl.program_id(0), run_tiles, tile_count(view), view)
    c = block_channels(0, view.BLOCK_C, view.INDEX)
    total = tl.cast(view.channels, view.ACCUMULATOR)
    epsilon = tl.full([1, 1, 1], eps, view.ACCUMULATOR)
    for tile in range(first, last):
        o, i = tile_indices(tile, view, view.BLOCK_I)
        row, exists = row_numbers(o, i, view)
        mask = parts_exist(c, o, i, view)
        value = load_parts(x, mask, c, o, i, view)
        centre = finite_or_zero(row_sum(value) / total)
        deviation = tl.where(mask, value - centre, 0.0)
        offset, M2 = centred_moments(row_sum(deviation), row_sum(product(deviation, deviation)), total)
        sigma = square_root(M2 / total + epsilon)
        if statistics is not None:
            store_row_pair(statistics, row, exists, view, centre + offset, sigma)
        xhat = (deviation - offset) * reciprocal(sigma + epsilon)
        store_parts(y, weighted(xhat, weight, bias, c, view), mask, c, o, i, view)


@triton.jit(do_not_specialize_on_alignment=VECTORS)
def sample_long_forward_kernel(
    x, y,  # (..., C) of any strides
    weight, bias,  # (C,) or None
    statistics,  # (2, rows), written: mean, sigma; or None
    partials,  # (chunks, 2, rows) workspace: mean - first element, M2; None where PHASE is "both"
    eps: tl.float64,
    channels, outer, outer_1, outer_2, inner, chunks, column_tiles, run_tiles,
    x_o0, x_o1, x_o2, x_c, x_i,
    y_o0, y_o1, y_o2, y_c, y_i,
    PHASE: tl.constexpr, ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr,
    OUTER_RANK: tl.constexpr, CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_K: tl.constexpr,
    MASK_C: tl.constexpr, MASK_O: tl.constexpr, MASK_I: tl.constexpr,
):  # fmt: skip
    """A run of row tiles, and of each a chunk of columns: its mean and M2, then the merged statistics and y."""
    sample_long_forward(
        Strided(x, x_o0, x_o1, x_o2, x_c, x_i), Strided(y, y_o0, y_o1, y_o2, y_c, y_i),
        weight, bias, statistics, partials, eps,
        View(
            channels, outer, outer_1, outer_2, inner, ACCUMULATOR, INDEX, OUTER_RANK, CHANNELS_LAST, ALIGN,
            BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O, MASK_I,
        ),
        chunks, column_tiles, run_tiles, PHASE, BLOCK_K,
    )  # fmt: skip


@triton.jit
def sample_long_forward(
    x, y, weight, bias, statistics, partials, eps, view, chunks, column_tiles, run_tiles,
    PHASE: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A chunk of columns of a run of row tiles."""
    chunk = tl.program_id(0) % chunks
    first, last = chunk_tiles(tl.program_id(0) // chunks, run_tiles, tile_count(view), view)
    first_column, last_column = chunk_columns(chunk, column_tiles, view)
    total = tl.cast(view.channels, view.ACCUMULATOR)
    epsilon = tl.full([1, 1, 1], eps, view.ACCUMULATOR)
    for tile in range(first, last):
        o, i = tile_indices(tile, view, view.BLOCK_I)
        row, exists = row_numbers(o, i, view)
        reference = finite_or_zero(load_parts(x, exists, tl.zeros([1], view.INDEX), o, i, view))

        if PHASE != "normalize":
            lane_mean = tl.zeros([view.BLOCK_C, view.BLOCK_O, view.BLOCK_I], view.ACCUMULATOR)
            lane_M2 = tl.zeros([view.BLOCK_C, view.BLOCK_O, view.BLOCK_I], view.ACCUMULATOR)
            for column_tile in range(first_column, last_column):
                c = block_channels(column_tile, view.BLOCK_C, view.INDEX)
                mask = parts_exist(c, o, i, view)
                value = tl.where(mask, load_parts(x, mask, c, o, i, view) - reference, lane_mean)
                lane_mean, lane_M2 = welford_step(lane_mean, lane_M2, value, column_tile - first_column + 1)
            count = columns_of_lanes(first_column, last_column, view).to(view.ACCUMULATOR)
            of_chunk = columns_before(last_column, view) - columns_before(first_column, view)
            of_chunk = tl.cast(of_chunk, view.ACCUMULATOR)
            mean, variance = merge_parts(lane_mean, lane_M2, over_tile(count), of_chunk)
            if PHASE == "statistics":
                pairs = pairs_of_chunk(partials, chunk, view)
                store_row_pair(pairs, row, exists, view, mean, variance * of_chunk)

        if PHASE != "statistics":
            if PHASE == "normalize":
                chunk_mean, chunk_M2 = load_chunk_pairs(partials, row, exists, chunks, view, BLOCK_K)
                start, end = chunk_columns(tl.arange(0, BLOCK_K), column_tiles, view)
                count = columns_before(end, view) - columns_before(start, view)
                mean, variance = merge_parts(chunk_mean, chunk_M2, over_tile(count.to(view.ACCUMULATOR)), total)
            sigma = square_root(variance + epsilon)
            if statistics is not None:
                if chunk == 0:
                    store_row_pair(statistics, row, exists, view, reference + mean, sigma)
            scale = reciprocal(sigma + epsilon)
            for column_tile in range(first_column, last_column):
                c = block_channels(column_tile, view.BLOCK_C, view.INDEX)
                mask = parts_exist(c, o, i, view)
                xhat = (load_parts(x, mask, c, o, i, view) - reference - mean) * scale
                store_parts(y, weighted(xhat, weight, bias, c, view), mask, c, o, i, view)


@triton.jit
def weighted(xhat, weight, bias, c, view):
    """weight xhat + bias of a tile."""
    y = xhat
    if weight is not None:
        y *= over_tile(load_channels(weight, c, view))
    if bias is not None:
        y += over_tile(load_channels(bias, c, view))
    return y
