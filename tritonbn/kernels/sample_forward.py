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
from .rounding import reciprocal, square_root
from .sample_rows import (
    chunk_columns,
    column_indices,
    columns_before,
    columns_of_lanes,
    load_chunk_pairs,
    pairs_of_chunk,
    row_numbers,
    row_sum,
    store_row_pair,
)
from .tile import chunk_tiles, load_tile, over_tile, store_tile, tile_indices, tile_mask
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
    first, last = chunk_tiles(tl.program_id(0), run_tiles, outer, inner, BLOCK_O, BLOCK_I, INDEX)
    c = tl.arange(0, BLOCK_C)
    total = tl.cast(channels, ACCUMULATOR)
    epsilon = tl.full([1, 1, 1], eps, ACCUMULATOR)
    for tile in range(first, last):
        o, i = tile_indices(tile, inner, BLOCK_O, BLOCK_I, INDEX)
        row, exists = row_numbers(o, i, outer, inner)
        mask = tile_mask(c, o, i, channels, outer, inner, CHANNELS_LAST, ALIGN, MASK_C, MASK_O, MASK_I)
        value = load_tile(
            x, mask, c, o, i, outer_1, outer_2, x_o0, x_o1, x_o2, x_c, x_i,
            OUTER_RANK, CHANNELS_LAST, ALIGN, ACCUMULATOR,
        )  # fmt: skip
        centre = finite_or_zero(row_sum(value) / total)
        deviation = tl.where(mask, value - centre, 0.0)
        offset, M2 = centred_moments(row_sum(deviation), row_sum(deviation * deviation), total)
        sigma = square_root(M2 / total + epsilon)
        if statistics is not None:
            store_row_pair(statistics, row, exists, outer, inner, centre + offset, sigma)
        value = (deviation - offset) * reciprocal(sigma + epsilon)
        if weight is not None:
            value *= over_tile(load_channels(weight, c, channels, ACCUMULATOR))
        if bias is not None:
            value += over_tile(load_channels(bias, c, channels, ACCUMULATOR))
        store_tile(
            y, value, mask, c, o, i, outer_1, outer_2, y_o0, y_o1, y_o2, y_c, y_i,
            OUTER_RANK, CHANNELS_LAST, ALIGN,
        )  # fmt: skip


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
    chunk = tl.program_id(0) % chunks
    first, last = chunk_tiles(tl.program_id(0) // chunks, run_tiles, outer, inner, BLOCK_O, BLOCK_I, INDEX)
    first_column, last_column = chunk_columns(chunk, column_tiles, channels, BLOCK_C)
    total = tl.cast(channels, ACCUMULATOR)
    epsilon = tl.full([1, 1, 1], eps, ACCUMULATOR)
    for tile in range(first, last):
        o, i = tile_indices(tile, inner, BLOCK_O, BLOCK_I, INDEX)
        row, exists = row_numbers(o, i, outer, inner)
        reference = load_tile(
            x, exists, tl.zeros([1], INDEX), o, i, outer_1, outer_2, x_o0, x_o1, x_o2, x_c, x_i,
            OUTER_RANK, CHANNELS_LAST, ALIGN, ACCUMULATOR,
        )  # fmt: skip
        reference = finite_or_zero(reference)

        if PHASE != "normalize":
            lane_mean = tl.zeros([BLOCK_C, BLOCK_O, BLOCK_I], ACCUMULATOR)
            lane_M2 = tl.zeros([BLOCK_C, BLOCK_O, BLOCK_I], ACCUMULATOR)
            for column_tile in range(first_column, last_column):
                c = column_indices(column_tile, BLOCK_C, INDEX)
                mask = tile_mask(c, o, i, channels, outer, inner, CHANNELS_LAST, ALIGN, MASK_C, MASK_O, MASK_I)
                value = load_tile(
                    x, mask, c, o, i, outer_1, outer_2, x_o0, x_o1, x_o2, x_c, x_i,
                    OUTER_RANK, CHANNELS_LAST, ALIGN, ACCUMULATOR,
                )  # fmt: skip
                value = tl.where(mask, value - reference, lane_mean)
                lane_mean, lane_M2 = welford_step(lane_mean, lane_M2, value, column_tile - first_column + 1)
            count = columns_of_lanes(first_column, last_column, channels, BLOCK_C).to(ACCUMULATOR)
            of_chunk = columns_before(last_column, channels, BLOCK_C) - columns_before(first_column, channels, BLOCK_C)
            of_chunk = tl.cast(of_chunk, ACCUMULATOR)
            mean, variance = merge_parts(lane_mean, lane_M2, over_tile(count), of_chunk, 0)
            if PHASE == "statistics":
                pairs = pairs_of_chunk(partials, chunk, outer, inner, INDEX)
                store_row_pair(pairs, row, exists, outer, inner, mean, variance * of_chunk)

        if PHASE != "statistics":
            if PHASE == "normalize":
                chunk_mean, chunk_M2 = load_chunk_pairs(partials, row, exists, outer, inner, chunks, BLOCK_K, INDEX)
                start, end = chunk_columns(tl.arange(0, BLOCK_K), column_tiles, channels, BLOCK_C)
                count = columns_before(end, channels, BLOCK_C) - columns_before(start, channels, BLOCK_C)
                mean, variance = merge_parts(chunk_mean, chunk_M2, over_tile(count.to(ACCUMULATOR)), total, 0)
            sigma = square_root(variance + epsilon)
            if statistics is not None:
                if chunk == 0:
                    store_row_pair(statistics, row, exists, outer, inner, reference + mean, sigma)
            scale = reciprocal(sigma + epsilon)
            for column_tile in range(first_column, last_column):
                c = column_indices(column_tile, BLOCK_C, INDEX)
                mask = tile_mask(c, o, i, channels, outer, inner, CHANNELS_LAST, ALIGN, MASK_C, MASK_O, MASK_I)
                value = load_tile(
                    x, mask, c, o, i, outer_1, outer_2, x_o0, x_o1, x_o2, x_c, x_i,
                    OUTER_RANK, CHANNELS_LAST, ALIGN, ACCUMULATOR,
                )  # fmt: skip
                value = (value - reference - mean) * scale
                if weight is not None:
                    value *= over_tile(load_channels(weight, c, channels, ACCUMULATOR))
                if bias is not None:
                    value += over_tile(load_channels(bias, c, channels, ACCUMULATOR))
                store_tile(
                    y, value, mask, c, o, i, outer_1, outer_2, y_o0, y_o1, y_o2, y_c, y_i,
                    OUTER_RANK, CHANNELS_LAST, ALIGN,
                )  # fmt: skip
