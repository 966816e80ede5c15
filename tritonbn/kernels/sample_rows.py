"""Rows of a sample-wise norm: with columns as its channels, a tile [BLOCK_C, BLOCK_O, BLOCK_I] holds parts of rows.

What a row has one of (mean, sigma, a sum) is [1, BLOCK_O, BLOCK_I]. Rows are numbered in the order in which y lies.
A run is some row tiles that follow each other, a chunk some column tiles.
"""

import triton
import triton.language as tl


@triton.jit
def row_numbers(o, i, outer, inner):
    """Numbers of a tile's rows, and which of them exist."""
    return o * inner + i, (o < outer) & (i < inner)


@triton.jit
def row_sum(value):
    """[BLOCK_C, BLOCK_O, BLOCK_I] -> [1, BLOCK_O, BLOCK_I], in an order that depends on nothing but the shape."""
    return tl.sum(value, 0, keep_dims=True)


@triton.jit
def load_row_pair(pairs, row, exists, outer, inner, other):
    """Both numbers of each row in pairs (2, rows); `other` for rows that do not exist."""
    rows = tl.cast(outer, row.dtype) * inner
    return tl.load(pairs + row, exists, other=other), tl.load(pairs + rows + row, exists, other=other)


@triton.jit
def store_row_pair(pairs, row, exists, outer, inner, first, second):
    """Write both numbers of each row to pairs (2, rows)."""
    rows = tl.cast(outer, row.dtype) * inner
    tl.store(pairs + row, first, exists)
    tl.store(pairs + rows + row, second, exists)


@triton.jit
def pairs_of_chunk(partials, chunk, outer, inner, INDEX: tl.constexpr):
    """The pairs (2, rows) of one chunk in partials (chunks, 2, rows)."""
    return partials + 2 * tl.cast(chunk, INDEX) * outer * inner


@triton.jit
def load_chunk_pairs(partials, row, exists, outer, inner, chunks, BLOCK_K: tl.constexpr, INDEX: tl.constexpr):
    """Both numbers of each row and chunk as [BLOCK_K, BLOCK_O, BLOCK_I]; zeros where there is none."""
    k = tl.arange(0, BLOCK_K)[:, None, None]
    pairs = pairs_of_chunk(partials, k, outer, inner, INDEX)
    return load_row_pair(pairs, row, exists & (k < chunks), outer, inner, 0.0)


@triton.jit
def chunk_columns(chunk, column_tiles, channels, BLOCK_C: tl.constexpr):
    """The first column tile of a chunk, and the one after its last."""
    tiles = tl.cdiv(channels, BLOCK_C)
    first = tl.minimum(chunk * column_tiles, tiles)
    return first, tl.minimum(first + column_tiles, tiles)


@triton.jit
def columns_before(column_tile, channels, BLOCK_C: tl.constexpr):
    """How many columns lie in the tiles before `column_tile`."""
    return tl.minimum(column_tile * BLOCK_C, channels)


@triton.jit
def column_indices(column_tile, BLOCK_C: tl.constexpr, INDEX: tl.constexpr):
    """Columns [BLOCK_C] of a tile."""
    return tl.cast(column_tile, INDEX) * BLOCK_C + tl.arange(0, BLOCK_C)


@triton.jit
def columns_of_lanes(first, last, channels, BLOCK_C: tl.constexpr):
    """How many columns each lane [BLOCK_C] meets in the column tiles from `first` to before `last`."""
    in_last_tile = (last - 1) * BLOCK_C + tl.arange(0, BLOCK_C)
    return tl.where(in_last_tile < channels, last - first, last - first - 1)
