"""A block of channels as a sequence of tiles, plain (tile.py) or folded (fold.py): RUN is 0 where they are plain.

Tiles of a block are numbered; a chunk is a run of `tiles_per_chunk` of them.
"""

import triton
import triton.language as tl

from .fold import over_run, run_indices, run_mask, run_offsets, run_sum
from .tile import (
    WHOLLY,
    chunk_tiles,
    elements_before,
    over_tile,
    tile_indices,
    tile_mask,
    tile_offsets,
    tile_position,
    tile_sum,
)


@triton.jit
def block_channels(block, BLOCK_C: tl.constexpr, INDEX: tl.constexpr):
    """The channels [BLOCK_C] of a block."""
    return tl.cast(block, INDEX) * BLOCK_C + tl.arange(0, BLOCK_C)


@triton.jit
def block_and_chunk(program, blocks):
    """Neighbouring programs take neighbouring blocks of channels."""
    return program % blocks, program // blocks


@triton.jit
def tiles_of_chunk(
    chunk, tiles_per_chunk, outer, inner,
    BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, INDEX: tl.constexpr, FOLD: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """The first tile of a chunk, and the one after its last."""
    if RUN:
        runs = tl.cdiv(tl.cast(outer, INDEX) * inner, FOLD)
        first, last = chunk_tiles(chunk, tiles_per_chunk, runs, 1, BLOCK_O, 1, INDEX)
    else:
        first, last = chunk_tiles(chunk, tiles_per_chunk, outer, inner, BLOCK_O, BLOCK_I, INDEX)
    return first, last


@triton.jit
def tiles_of_block(
    outer, inner,
    BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, INDEX: tl.constexpr, FOLD: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """How many tiles a block of channels has."""
    if RUN:
        tiles = tl.cdiv(tl.cdiv(tl.cast(outer, INDEX) * inner, FOLD), BLOCK_O)
    else:
        tiles = tl.cdiv(tl.cast(outer, INDEX), BLOCK_O) * tl.cdiv(tl.cast(inner, INDEX), BLOCK_I)
    return tiles


@triton.jit
def values_before(
    tile, outer, inner,
    BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, INNER_TILES: tl.constexpr, FOLD: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """How many elements of one channel lie in the tiles before `tile`."""
    if RUN:
        values = tl.minimum(tile * BLOCK_O * FOLD, tl.cast(outer, tile.dtype) * inner)
    else:
        values = elements_before(tile, outer, inner, BLOCK_O, BLOCK_I, INNER_TILES)
    return values


@triton.jit
def tile_exists(
    tile, outer, inner,
    BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, INNER_TILES: tl.constexpr, FOLD: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """Whether a tile has any element."""
    if RUN:
        exists = tile * BLOCK_O * FOLD < tl.cast(outer, tile.dtype) * inner
    else:
        row, column = tile_position(tile, inner, BLOCK_I, INNER_TILES)
        exists = (row * BLOCK_O < outer) & (column * BLOCK_I < inner)
    return exists


@triton.jit
def locate(
    tile, block, c, channels, outer, inner,
    CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr, INDEX: tl.constexpr, INNER_TILES: tl.constexpr,
    FOLD: tl.constexpr, RUN: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
    MASK_C: tl.constexpr, MASK_O: tl.constexpr, MASK_I: tl.constexpr,
):  # fmt: skip
    """Indices o, i of a tile, and the mask of the elements that exist."""
    if RUN:
        o, i = run_indices(tile, BLOCK_O, BLOCK_I, INDEX)
        mask = run_mask(
            block, o, i, channels, outer, inner, CHANNELS_LAST, ALIGN, FOLD, RUN, BLOCK_C, MASK_C, MASK_O, MASK_I
        )
    else:
        o, i = tile_indices(tile, inner, BLOCK_O, BLOCK_I, INDEX, INNER_TILES)
        mask = tile_mask(c, o, i, channels, outer, inner, CHANNELS_LAST, ALIGN, MASK_C, MASK_O, MASK_I)
    if MASK_O == WHOLLY or MASK_I == WHOLLY:
        mask = mask & tile_exists(tile, outer, inner, BLOCK_O, BLOCK_I, INNER_TILES, FOLD, RUN)
    return o, i, mask


@triton.jit
def offsets_of(
    block, c, o, i, outer_1, outer_2,
    stride_o0, stride_o1, stride_o2, stride_c, stride_i,
    OUTER_RANK: tl.constexpr, CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr, RUN: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Element offsets of a tile in one tensor."""
    if RUN:
        offsets = run_offsets(
            tl.cast(block, o.dtype), o, i, outer_1, outer_2, stride_o0, stride_o1, stride_o2, stride_c,
            OUTER_RANK, CHANNELS_LAST, ALIGN, RUN, BLOCK_C,
        )  # fmt: skip
    else:
        offsets = tile_offsets(
            c, o, i, outer_1, outer_2, stride_o0, stride_o1, stride_o2, stride_c, stride_i,
            OUTER_RANK, CHANNELS_LAST, ALIGN,
        )  # fmt: skip
    return offsets


@triton.jit
def channel_sum(
    value,
    CHANNELS_LAST: tl.constexpr, FOLD: tl.constexpr, RUN: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The sum of a tile for each channel [BLOCK_C], in an order that depends on nothing but the shape."""
    if RUN:
        total = run_sum(value, CHANNELS_LAST, FOLD, RUN, BLOCK_C)
    else:
        total = tile_sum(value)
    return total


@triton.jit
def sum_to_edges(value, LANES: tl.constexpr):
    """[BLOCK_C, BLOCK_O, BLOCK_I] -> [BLOCK_C, 1, LANES]: what a thread holds side by side, to be added to edges."""
    BLOCK_C: tl.constexpr = value.shape[0]
    NEIGHBOURS: tl.constexpr = value.shape[1] * value.shape[2] // LANES
    return tl.sum(tl.reshape(value, [BLOCK_C, LANES, NEIGHBOURS]), 2)[:, None, :]


@triton.jit
def spread(
    value,
    CHANNELS_LAST: tl.constexpr, FOLD: tl.constexpr, RUN: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """[BLOCK_C] in a shape that meets the elements of a tile."""
    if RUN:
        wide = over_run(value, CHANNELS_LAST, FOLD, RUN, BLOCK_I)
    else:
        wide = over_tile(value)
    return wide


@triton.jit
def load_view(
    x, tile, block, c, channels, outer, outer_1, outer_2, inner,
    stride_o0, stride_o1, stride_o2, stride_c, stride_i,
    OUTER_RANK: tl.constexpr, CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr, INDEX: tl.constexpr,
    INNER_TILES: tl.constexpr, FOLD: tl.constexpr, RUN: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
    MASK_C: tl.constexpr, MASK_O: tl.constexpr, MASK_I: tl.constexpr,
):  # fmt: skip
    """A tile of one tensor in its own dtype, zero where there is no element; and where there is one."""
    o, i, mask = locate(
        tile, block, c, channels, outer, inner, CHANNELS_LAST, ALIGN, INDEX, INNER_TILES, FOLD, RUN,
        BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O, MASK_I,
    )  # fmt: skip
    at = offsets_of(
        block, c, o, i, outer_1, outer_2, stride_o0, stride_o1, stride_o2, stride_c, stride_i,
        OUTER_RANK, CHANNELS_LAST, ALIGN, RUN, BLOCK_C,
    )  # fmt: skip
    return tl.load(x + at, mask, other=0.0), mask


@triton.jit
def store_view(
    y, value, tile, block, c, channels, outer, outer_1, outer_2, inner,
    stride_o0, stride_o1, stride_o2, stride_c, stride_i,
    OUTER_RANK: tl.constexpr, CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr, INDEX: tl.constexpr,
    INNER_TILES: tl.constexpr, FOLD: tl.constexpr, RUN: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
    MASK_C: tl.constexpr, MASK_O: tl.constexpr, MASK_I: tl.constexpr,
):  # fmt: skip
    """Write a tile of one tensor, rounded to its dtype."""
    o, i, mask = locate(
        tile, block, c, channels, outer, inner, CHANNELS_LAST, ALIGN, INDEX, INNER_TILES, FOLD, RUN,
        BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O, MASK_I,
    )  # fmt: skip
    at = offsets_of(
        block, c, o, i, outer_1, outer_2, stride_o0, stride_o1, stride_o2, stride_c, stride_i,
        OUTER_RANK, CHANNELS_LAST, ALIGN, RUN, BLOCK_C,
    )  # fmt: skip
    tl.store(y + at, value, mask)


@triton.jit
def locate_bytes(
    tile, block, channels, outer, inner,
    CHANNELS_LAST: tl.constexpr, GROUP: tl.constexpr, INDEX: tl.constexpr, INNER_TILES: tl.constexpr,
    FOLD: tl.constexpr, RUN: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Offsets and mask of a tile's bytes, each for GROUP neighbours of the fast axis, whose rows begin with a byte."""
    if RUN:
        o, i = run_indices(tile, BLOCK_O, BLOCK_I // GROUP, INDEX)
        runs = tl.cdiv(tl.cast(outer, INDEX) * inner, FOLD)
        mask = (o < runs) & (i < (RUN + GROUP - 1) // GROUP)
        offsets = (tl.cast(block, INDEX) * runs + o) * ((RUN + GROUP - 1) // GROUP) + i
    elif CHANNELS_LAST:
        channel_bytes = tl.cdiv(channels, GROUP)
        c = block_channels(block, BLOCK_C // GROUP, INDEX)[:, None, None]
        o, i = tile_indices(tile, inner, BLOCK_O, BLOCK_I, INDEX, INNER_TILES)
        mask = (c < channel_bytes) & (o < outer) & (i < inner)
        offsets = (o * inner + i) * channel_bytes + c
    else:
        row_bytes = tl.cdiv(inner, GROUP)
        c = block_channels(block, BLOCK_C, INDEX)[:, None, None]
        o, i = tile_indices(tile, row_bytes, BLOCK_O, BLOCK_I // GROUP, INDEX, INNER_TILES)
        mask = (c < channels) & (o < outer) & (i < row_bytes)
        offsets = (c * outer + o) * row_bytes + i
    return offsets, mask
