"""Sample-wise backward, with xhat and sigma as in sample_forward.py, g = dy weight, and means over each row.

dx = (g - mean(g) - xhat mean(g xhat) (sigma + eps) / sigma) / (sigma + eps); over the rows dbias = sum dy and dweight =
sum dy xhat, of which each run of rows leaves its share to sample_columns.py. A row that a tile holds is read once. For
a longer one a kernel of its own first sums g and g xhat, a chunk of columns a program.
"""

import triton
import triton.language as tl

from .channel import VECTORS, load_channels
from .rounding import reciprocal
from .sample_columns import store_column_sums
from .sample_rows import (
    chunk_columns,
    column_indices,
    load_chunk_pairs,
    load_row_pair,
    pairs_of_chunk,
    row_numbers,
    row_sum,
    store_row_pair,
)
from .tile import channels_and_chunk, chunk_tiles, load_tile, over_tile, store_tile, tile_indices, tile_mask


@triton.jit(do_not_specialize_on_alignment=VECTORS)
def sample_row_sums_kernel(
    x, dy,  # (..., C) of any strides
    weight,  # (C,) or None
    statistics,  # (2, rows): mean, sigma
    row_sums,  # (chunks, 2, rows), written: sums over the chunk's columns of g and g xhat
    eps: tl.float64,
    channels, outer, outer_1, outer_2, inner, chunks, column_tiles, run_tiles,
    x_o0, x_o1, x_o2, x_c, x_i,
    dy_o0, dy_o1, dy_o2, dy_c, dy_i,
    dx_o0, dx_o1, dx_o2, dx_c, dx_i,
    ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr,
    OUTER_RANK: tl.constexpr, CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
    MASK_C: tl.constexpr, MASK_O: tl.constexpr, MASK_I: tl.constexpr,
):  # fmt: skip
    """What a chunk of columns adds to each row's mean(g) and mean(g xhat)."""
    chunk = tl.program_id(0) % chunks
    first, last = chunk_tiles(tl.program_id(0) // chunks, run_tiles, outer, inner, BLOCK_O, BLOCK_I, INDEX)
    first_column, last_column = chunk_columns(chunk, column_tiles, channels, BLOCK_C)
    epsilon = tl.full([1, 1, 1], eps, ACCUMULATOR)
    for tile in range(first, last):
        o, i = tile_indices(tile, inner, BLOCK_O, BLOCK_I, INDEX)
        row, exists = row_numbers(o, i, outer, inner)
        mean, sigma = load_row_pair(statistics, row, exists, outer, inner, 1.0)
        scale = reciprocal(sigma + epsilon)
        sum_g = tl.zeros([BLOCK_C, BLOCK_O, BLOCK_I], ACCUMULATOR)
        sum_g_xhat = tl.zeros([BLOCK_C, BLOCK_O, BLOCK_I], ACCUMULATOR)
        for column_tile in range(first_column, last_column):
            c = column_indices(column_tile, BLOCK_C, INDEX)
            mask = tile_mask(c, o, i, channels, outer, inner, CHANNELS_LAST, ALIGN, MASK_C, MASK_O, MASK_I)
            xhat = load_tile(
                x, mask, c, o, i, outer_1, outer_2, x_o0, x_o1, x_o2, x_c, x_i,
                OUTER_RANK, CHANNELS_LAST, ALIGN, ACCUMULATOR,
            )  # fmt: skip
            gradient = load_tile(
                dy, mask, c, o, i, outer_1, outer_2, dy_o0, dy_o1, dy_o2, dy_c, dy_i,
                OUTER_RANK, CHANNELS_LAST, ALIGN, ACCUMULATOR,
            )  # fmt: skip
            if weight is not None:
                gradient *= over_tile(load_channels(weight, c, channels, ACCUMULATOR))
            sum_g += gradient
            sum_g_xhat += gradient * ((xhat - mean) * scale)
        pairs = pairs_of_chunk(row_sums, chunk, outer, inner, INDEX)
        store_row_pair(pairs, row, exists, outer, inner, row_sum(sum_g), row_sum(sum_g_xhat))


@triton.jit(do_not_specialize_on_alignment=VECTORS)
def sample_gradients_kernel(
    x, dy, dx,  # (..., C) of any strides; dx is None where it is not wanted
    weight,  # (C,) or None
    statistics,  # (2, rows): mean, sigma
    row_sums,  # (chunks, 2, rows): sums over each chunk's columns of g and g xhat; None where a tile holds its rows
    column_sums,  # (runs, 2, C), written: sums over the run's rows of dy and dy xhat; or None
    eps: tl.float64,
    channels, outer, outer_1, outer_2, inner, chunks, run_tiles,
    x_o0, x_o1, x_o2, x_c, x_i,
    dy_o0, dy_o1, dy_o2, dy_c, dy_i,
    dx_o0, dx_o1, dx_o2, dx_c, dx_i,
    ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr,
    OUTER_RANK: tl.constexpr, CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_K: tl.constexpr,
    MASK_C: tl.constexpr, MASK_O: tl.constexpr, MASK_I: tl.constexpr,
):  # fmt: skip
    """dx of a run of row tiles in one column tile, and the run's share of dweight and dbias."""
    c, run = channels_and_chunk(channels, BLOCK_C, INDEX)
    first, last = chunk_tiles(run, run_tiles, outer, inner, BLOCK_O, BLOCK_I, INDEX)
    total = tl.cast(channels, ACCUMULATOR)
    epsilon = tl.full([1, 1, 1], eps, ACCUMULATOR)
    sum_dy = tl.zeros([BLOCK_C, BLOCK_O, BLOCK_I], ACCUMULATOR)
    sum_dy_xhat = tl.zeros([BLOCK_C, BLOCK_O, BLOCK_I], ACCUMULATOR)
    for tile in range(first, last):
        o, i = tile_indices(tile, inner, BLOCK_O, BLOCK_I, INDEX)
        row, exists = row_numbers(o, i, outer, inner)
        mask = tile_mask(c, o, i, channels, outer, inner, CHANNELS_LAST, ALIGN, MASK_C, MASK_O, MASK_I)
        xhat = load_tile(
            x, mask, c, o, i, outer_1, outer_2, x_o0, x_o1, x_o2, x_c, x_i,
            OUTER_RANK, CHANNELS_LAST, ALIGN, ACCUMULATOR,
        )  # fmt: skip
        gradient = load_tile(
            dy, mask, c, o, i, outer_1, outer_2, dy_o0, dy_o1, dy_o2, dy_c, dy_i,
            OUTER_RANK, CHANNELS_LAST, ALIGN, ACCUMULATOR,
        )  # fmt: skip
        mean, sigma = load_row_pair(statistics, row, exists, outer, inner, 1.0)
        scale = reciprocal(sigma + epsilon)
        xhat = (xhat - mean) * scale
        if column_sums is not None:
            sum_dy += gradient
            sum_dy_xhat += gradient * xhat
        if dx is not None:
            if weight is not None:
                gradient *= over_tile(load_channels(weight, c, channels, ACCUMULATOR))
            if row_sums is None:
                part, part_xhat = gradient, gradient * xhat
            else:
                part, part_xhat = load_chunk_pairs(row_sums, row, exists, outer, inner, chunks, BLOCK_K, INDEX)
            slope = row_sum(part_xhat) / total * ((sigma + epsilon) / sigma)
            gradient = (gradient - row_sum(part) / total - xhat * slope) * scale
            store_tile(
                dx, gradient, mask, c, o, i, outer_1, outer_2, dx_o0, dx_o1, dx_o2, dx_c, dx_i,
                OUTER_RANK, CHANNELS_LAST, ALIGN,
            )  # fmt: skip
    if column_sums is not None:
        store_column_sums(column_sums, run, c, channels, sum_dy, sum_dy_xhat)
