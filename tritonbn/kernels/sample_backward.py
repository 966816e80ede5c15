"""Sample-wise backward, with xhat and sigma as in sample_forward.py, g = dy weight, and means over each row.

dx = (g - mean(g) - xhat mean(g xhat) (sigma + eps) / sigma) / (sigma + eps); over the rows dbias = sum dy and dweight =
sum dy xhat, of which each run of rows leaves its share to sample_columns.py. A row that a tile holds is read once. For
a longer one a kernel of its own first sums g and g xhat, a chunk of columns a program.
"""

import triton
import triton.language as tl

from .channel import VECTORS, load_channels
from .records import Strided, View
from .rounding import reciprocal
from .sample_columns import store_column_sums
from .sample_rows import (
    chunk_columns,
    load_chunk_pairs,
    load_parts,
    load_row_pair,
    pairs_of_chunk,
    parts_exist,
    row_numbers,
    row_sum,
    store_parts,
    store_row_pair,
)
from .tile import chunk_tiles, over_tile, tile_count, tile_indices
from .view import block_and_chunk, block_channels


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
    """What a chunk of columns adds to each row's sums of g and of g xhat."""
    sample_row_sums(
        Strided(x, x_o0, x_o1, x_o2, x_c, x_i), Strided(dy, dy_o0, dy_o1, dy_o2, dy_c, dy_i),
        weight, statistics, row_sums, eps,
        View(
            channels, outer, outer_1, outer_2, inner, ACCUMULATOR, INDEX, OUTER_RANK, CHANNELS_LAST, ALIGN,
            BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O, MASK_I,
        ),
        chunks, column_tiles, run_tiles,
    )  # fmt: skip


@triton.jit
def sample_row_sums(x, dy, weight, statistics, row_sums, eps, view, chunks, column_tiles, run_tiles):
    """A chunk of columns of a run of row tiles."""
    chunk = tl.program_id(0) % chunks
    first, last = chunk_tiles(tl.program_id(0) // chunks, run_tiles, tile_count(view), view)
    first_column, last_column = chunk_columns(chunk, column_tiles, view)
    epsilon = tl.full([1, 1, 1], eps, view.ACCUMULATOR)
    for tile in range(first, last):
        o, i = tile_indices(tile, view, view.BLOCK_I)
        row, exists = row_numbers(o, i, view)
        mean, sigma = load_row_pair(statistics, row, exists, view, 1.0)
        scale = reciprocal(sigma + epsilon)
        sum_g = tl.zeros([view.BLOCK_C, view.BLOCK_O, view.BLOCK_I], view.ACCUMULATOR)
        sum_g_xhat = tl.zeros([view.BLOCK_C, view.BLOCK_O, view.BLOCK_I], view.ACCUMULATOR)
        for column_tile in range(first_column, last_column):
            c = block_channels(column_tile, view.BLOCK_C, view.INDEX)
            mask = parts_exist(c, o, i, view)
            xhat = (load_parts(x, mask, c, o, i, view) - mean) * scale
            g = load_parts(dy, mask, c, o, i, view)
            if weight is not None:
                g *= over_tile(load_channels(weight, c, view))
            sum_g += g
            sum_g_xhat += g * xhat
        pairs = pairs_of_chunk(row_sums, chunk, view)
        store_row_pair(pairs, row, exists, view, row_sum(sum_g), row_sum(sum_g_xhat))


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
    sample_gradients(
        Strided(x, x_o0, x_o1, x_o2, x_c, x_i), Strided(dy, dy_o0, dy_o1, dy_o2, dy_c, dy_i),
        Strided(dx, dx_o0, dx_o1, dx_o2, dx_c, dx_i), weight, statistics, row_sums, column_sums, eps,
        View(
            channels, outer, outer_1, outer_2, inner, ACCUMULATOR, INDEX, OUTER_RANK, CHANNELS_LAST, ALIGN,
            BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O, MASK_I,
        ),
        chunks, run_tiles, BLOCK_K,
    )  # fmt: skip


@triton.jit
def sample_gradients(
    x, dy, dx, weight, statistics, row_sums, column_sums, eps, view, chunks, run_tiles, BLOCK_K: tl.constexpr
):
    """A column tile of a run of row tiles."""
    block, run = block_and_chunk(tl.program_id(0), tl.cdiv(view.channels, view.BLOCK_C))
    c = block_channels(block, view.BLOCK_C, view.INDEX)
    first, last = chunk_tiles(run, run_tiles, tile_count(view), view)
    total = tl.cast(view.channels, view.ACCUMULATOR)
    epsilon = tl.full([1, 1, 1], eps, view.ACCUMULATOR)
    sum_dy = tl.zeros([view.BLOCK_C, view.BLOCK_O, view.BLOCK_I], view.ACCUMULATOR)
    sum_dy_xhat = tl.zeros([view.BLOCK_C, view.BLOCK_O, view.BLOCK_I], view.ACCUMULATOR)
    for tile in range(first, last):
        o, i = tile_indices(tile, view, view.BLOCK_I)
        row, exists = row_numbers(o, i, view)
        mask = parts_exist(c, o, i, view)
        value = load_parts(x, mask, c, o, i, view)
        gradient = load_parts(dy, mask, c, o, i, view)
        mean, sigma = load_row_pair(statistics, row, exists, view, 1.0)
        scale = reciprocal(sigma + epsilon)
        xhat = (value - mean) * scale
        if column_sums is not None:
            sum_dy += gradient
            sum_dy_xhat += gradient * xhat
        if dx.base is not None:
            g = gradient
            if weight is not None:
                g *= over_tile(load_channels(weight, c, view))
            if row_sums is None:
                part, part_xhat = g, g * xhat
            else:
                part, part_xhat = load_chunk_pairs(row_sums, row, exists, chunks, view, BLOCK_K)
            along_xhat = row_sum(part_xhat) / total * ((sigma + epsilon) / sigma)
            store_parts(dx, (g - row_sum(part) / total - xhat * along_xhat) * scale, mask, c, o, i, view)
    if column_sums is not None:
        store_column_sums(column_sums, run, c, view.channels, sum_dy, sum_dy_xhat)
