"""Rows of a sample-wise norm: with columns as its channels, a tile [BLOCK_C, BLOCK_O, BLOCK_I] holds parts of rows.

What a row has one of (mean, sigma, a sum) is [1, BLOCK_O, BLOCK_I]. Rows are numbered in the order in which y lies.
A run is some row tiles that follow each other, a chunk some column tiles.
"""

import triton
import triton.language as tl

from .tile import tile_mask, tile_offsets


@triton.jit
def row_numbers(o, i, view):
    """Numbers of a tile's rows, and which of them exist."""
    return o * view.inner + i, (o < view.outer) & (i < view.inner)


@triton.jit
def parts_exist(c, o, i, view):
    """Which elements of a tile exist."""
    return tile_mask(c, o, i, view, view.MASKS_O, view.MASKS_I)


@triton.jit
def load_parts(x, mask, c, o, i, view):
    """A tile of one tensor in the precision of the statistics, zero where the mask is false."""
    return tl.load(x.base + tile_offsets(x, c, o, i, view, view.ALIGN), mask, other=0.0).to(view.ACCUMULATOR)


@triton.jit
def store_parts(y, value, mask, c, o, i, view):
    """Write a tile of one tensor, rounded to its dtype."""
    tl.store(y.base + tile_offsets(y, c, o, i, view, view.ALIGN), value, mask)


@triton.jit
def row_sum(value):
    """[BLOCK_C, BLOCK_O, BLOCK_I] -> [1, BLOCK_O, BLOCK_I], in an order that depends on nothing but the shape."""
    return tl.sum(value, 0, keep_dims=True)


@triton.jit
def load_row_pair(pairs, row, exists, view, other):
    """Both numbers of each row in pairs (2, rows); `other` for rows that do not exist."""
    rows = tl.cast(view.outer, row.dtype) * view.inner
    return tl.load(pairs + row, exists, other=other), tl.load(pairs + rows + row, exists, other=other)


@triton.jit
def store_row_pair(pairs, row, exists, view, first, second):
    """Write both numbers of each row to pairs (2, rows)."""
    rows = tl.cast(view.outer, row.dtype) * view.inner
    tl.store(pairs + row, first, exists)
    tl.store(pairs + rows + row, second, exists)


@triton.jit
def pairs_of_chunk(partials, chunk, view):
    """The pairs (2, rows) of one chunk in partials (chunks, 2, rows)."""
    return partials + 2 * tl.cast(chunk, view.INDEX) * view.outer * view.inner


@triton.jit
def load_chunk_pairs(partials, row, exists, chunks, view, BLOCK_K: tl.constexpr):
    """Both numbers of each row and chunk as [BLOCK_K, BLOCK_O, BLOCK_I]; zeros where there is none."""
    k = tl.arange(0, BLOCK_K)[:, None, None]
    pairs = pairs_of_chunk(partials, k, view)
    return load_row_pair(pairs, row, exists & (k < chunks), view, 0.0)


@triton.jit
def chunk_columns(chunk, column_tiles, view):
    """The first column tile of a chunk, which has `column_tiles` of them at most, and the one after its last."""
    tiles = tl.cdiv(view.channels, view.BLOCK_C)
    first = tl.minimum(chunk * column_tiles, tiles)
    return first, tl.minimum(first + column_tiles, tiles)


@triton.jit
def columns_before(column_tile, view):
    """How many columns lie in the tiles before `column_tile`."""
    return tl.minimum(column_tile * view.BLOCK_C, view.channels)


@triton.jit
def columns_of_lanes(first, last, view):
    """How many columns each lane [BLOCK_C] meets in the column tiles from `first` to before `last`."""
    in_last_tile = (last - 1) * view.BLOCK_C + tl.arange(0, view.BLOCK_C)
    return tl.where(in_last_tile < view.channels, last - first, last - first - 1)
