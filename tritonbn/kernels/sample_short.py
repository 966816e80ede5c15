"""Sample-wise normalization of rows that a tile holds whole: every tensor is read once, forward and backward.

Forward: sigma = sqrt(variance + eps), xhat = (x - mean) / (sigma + eps), y = weight xhat + bias (Keras, mode 1).
Backward, with g = dy weight and means over the row:
dx = (g - mean(g) - xhat mean(g xhat) (sigma + eps) / sigma) / (sigma + eps); over the rows dbias = sum dy,
dweight = sum dy xhat, for which each run of rows leaves a partial sum of every column to sample_columns.py.
"""

import triton
import triton.language as tl

from .channel import load_channels
from .rounding import reciprocal, square_root
from .sample_columns import store_column_sums
from .sample_rows import load_row_pair, row_numbers, row_sum, store_row_pair
from .tile import chunk_tiles, load_tile, over_tile, store_tile, tile_indices, tile_mask
from .welford import centred_moments, finite_or_zero


@triton.jit
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


@triton.jit
def sample_short_backward_kernel(
    x, dy, dx,  # (..., C) of any strides; dx is None where it is not wanted
    weight,  # (C,) or None
    statistics,  # (2, rows): mean, sigma
    column_sums,  # (runs, 2, C), written: sums over the run's rows of dy and dy xhat; or None
    eps: tl.float64,
    channels, outer, outer_1, outer_2, inner, run_tiles,
    x_o0, x_o1, x_o2, x_c, x_i,
    dy_o0, dy_o1, dy_o2, dy_c, dy_i,
    dx_o0, dx_o1, dx_o2, dx_c, dx_i,
    ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr,
    OUTER_RANK: tl.constexpr, CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
    MASK_C: tl.constexpr, MASK_O: tl.constexpr, MASK_I: tl.constexpr,
):  # fmt: skip
    """dx of a run of row tiles, and the run's share of dweight and dbias."""
    run = tl.program_id(0)
    first, last = chunk_tiles(run, run_tiles, outer, inner, BLOCK_O, BLOCK_I, INDEX)
    c = tl.arange(0, BLOCK_C)
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
            slope = row_sum(gradient * xhat) / total * ((sigma + epsilon) / sigma)
            gradient = (gradient - row_sum(gradient) / total - xhat * slope) * scale
            store_tile(
                dx, gradient, mask, c, o, i, outer_1, outer_2, dx_o0, dx_o1, dx_o2, dx_c, dx_i,
                OUTER_RANK, CHANNELS_LAST, ALIGN,
            )  # fmt: skip
    if column_sums is not None:
        store_column_sums(column_sums, run, c, channels, sum_dy, sum_dy_xhat)
