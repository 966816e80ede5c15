"""A block of channels as a sequence of tiles, plain (tile.py) or folded (fold.py): RUN is 0 where they are plain.

Tiles of a block are numbered; a chunk is a run of some of them. A tile's AT is its number among those of the chunk that
have masks of their own (chunk.py): 0 where all have the same.
"""

import triton
import triton.language as tl

from .fold import over_run, run_count, run_indices, run_mask, run_offsets, run_sum, run_sums
from .source import SOURCE
from .tile import (
    PARTLY,
    WHOLLY,
    chunk_tiles,
    elements_before,
    interior_offsets,
    over_tile,
    plane_offsets,
    tile_count,
    tile_indices,
    tile_mask,
    tile_offsets,
    tile_position,
    tile_sum,
    tile_sums,
)


@triton.jit
def block_channels(block, BLOCK_C: tl.constexpr, INDEX: tl.constexpr):
    """The channels [BLOCK_C] of a block."""
    tl.static_assert(SOURCE != "")  # all kernels come by here, and so have it in their key
    return tl.cast(block, INDEX) * BLOCK_C + tl.arange(0, BLOCK_C)


@triton.jit
def block_and_chunk(program, blocks):
    """The block of a program, and its chunk: neighbouring programs take neighbouring blocks."""
    return program % blocks, program // blocks


@triton.jit
def tiles_of_block(view):
    """How many tiles a block of channels has."""
    if view.RUN:
        tiles = tl.cdiv(run_count(view), view.BLOCK_O)
    else:
        tiles = tile_count(view)
    return tiles


@triton.jit
def tiles_of_chunk(chunk, tiles_per_chunk, view):
    """The first tile of a chunk, and the one after its last."""
    return chunk_tiles(chunk, tiles_per_chunk, tiles_of_block(view), view)


@triton.jit
def values_before(tile, view):
    """How many elements of one channel lie in the tiles before `tile`."""
    if view.RUN:
        values = tl.minimum(tile * view.BLOCK_O * view.FOLD, tl.cast(view.outer, tile.dtype) * view.inner)
    else:
        values = elements_before(tile, view)
    return values


@triton.jit
def tile_exists(tile, view):
    """Whether a tile has any element."""
    if view.RUN:
        exists = tile * view.BLOCK_O * view.FOLD < tl.cast(view.outer, tile.dtype) * view.inner
    else:
        row, column = tile_position(tile, view)
        exists = (row * view.BLOCK_O < view.outer) & (column * view.BLOCK_I < view.inner)
    return exists


@triton.jit
def locate(tile, item, view, AT: tl.constexpr):
    """Indices o, i of a tile, and the mask of the elements that exist."""
    MASK_O: tl.constexpr = view.MASKS_O >> 2 * AT & 3
    MASK_I: tl.constexpr = view.MASKS_I >> 2 * AT & 3
    if view.RUN:
        o, i = run_indices(tile, view, view.BLOCK_I)
        mask = run_mask(item.block, o, i, view, MASK_O, MASK_I)
    else:
        o, i = tile_indices(tile, view, view.BLOCK_I)
        mask = tile_mask(item.c, o, i, view, MASK_O, MASK_I)
    if MASK_O == WHOLLY or MASK_I == WHOLLY:
        mask = mask & tile_exists(tile, view)
    return o, i, mask


@triton.jit
def offsets_of(x, o, i, item, view):
    """Element offsets of a tile in one tensor."""
    if view.RUN:
        offsets = run_offsets(x, tl.cast(item.block, o.dtype), o, i, view)
    elif view.EDGES:
        offsets = interior_offsets(plane_offsets(x, item.c, o, view), view) + i
    else:
        offsets = tile_offsets(x, item.c, o, i, view, view.ALIGN)
    return offsets


@triton.jit
def load_tile(x, tile, item, view, AT: tl.constexpr = 0):
    """A tile of one tensor in its own dtype, zero where there is no element; and where there is one."""
    o, i, mask = locate(tile, item, view, AT)
    at = x.base + offsets_of(x, o, i, item, view)
    if ends_raggedly(x, view, AT):
        whole = has_whole_runs(tile, view)
        value = tl.load(at, whole_runs(o, i, item, view) & whole, other=0.0)
        if not whole:
            value = tl.load(at, mask, other=0.0)
    else:
        value = tl.load(at, mask, other=0.0)
    return value, mask


@triton.jit
def store_tile(y, value, tile, item, view, AT: tl.constexpr = 0):
    """Write a tile of one tensor, rounded to its dtype."""
    o, i, mask = locate(tile, item, view, AT)
    at = y.base + offsets_of(y, o, i, item, view)
    if ends_raggedly(y, view, AT):
        whole = has_whole_runs(tile, view)
        tl.store(at, value, whole_runs(o, i, item, view) & whole)
        if not whole:
            tl.store(at, value, mask)
    else:
        tl.store(at, value, mask)


def ends_raggedly(x, view, AT, _semantic=None):
    """Whether a tile's runs of pixels may end within an access: then whole tiles get their own access, or none is wide.

    Only the ragged one is in a branch, since of two branches the compiler would make one narrow access.
    """
    access = 128 // x.base.dtype.element_ty.primitive_bitwidth
    is_last = (view.MASKS_O >> 2 * AT & 3) == PARTLY
    return tl.constexpr(view.RUN > 0 and view.CHANNELS_LAST and is_last and access > view.ALIGN)


ends_raggedly.__triton_builtin__ = True


@triton.jit
def has_whole_runs(tile, view):
    """Whether no run of a tile of pixels lacks any."""
    return (tile + 1) * view.BLOCK_O * view.FOLD <= tl.cast(view.inner, view.INDEX)


@triton.jit
def whole_runs(o, i, item, view):
    """Which elements exist of such a tile."""
    return run_mask(item.block, o, i, view, 0, view.RUN != view.BLOCK_I)


@triton.jit
def locate_bytes(tile, item, view, GROUP: tl.constexpr):
    """Offsets and mask of a tile's bytes, each for GROUP neighbours of the fast axis, whose rows begin with a byte."""
    if view.RUN:
        o, i = run_indices(tile, view, view.BLOCK_I // GROUP)
        runs = run_count(view)
        mask = (o < runs) & (i < (view.RUN + GROUP - 1) // GROUP)
        offsets = (tl.cast(item.block, view.INDEX) * runs + o) * ((view.RUN + GROUP - 1) // GROUP) + i
    elif view.CHANNELS_LAST:
        channel_bytes = tl.cdiv(view.channels, GROUP)
        c = block_channels(item.block, view.BLOCK_C // GROUP, view.INDEX)[:, None, None]
        o, i = tile_indices(tile, view, view.BLOCK_I)
        mask = (c < channel_bytes) & (o < view.outer) & (i < view.inner)
        offsets = (o * view.inner + i) * channel_bytes + c
    else:
        c = item.c[:, None, None]
        o, i = tile_indices(tile, view, view.BLOCK_I // GROUP)
        mask = (c < view.channels) & (o < view.outer) & (i < tl.cdiv(view.inner, GROUP))
        offsets = (c * view.outer + o) * bytes_of_plane(view, GROUP) + i
    return offsets, mask


@triton.jit
def bytes_of_plane(view, GROUP: tl.constexpr):
    """How many bytes the bits of a plane take: of its interior, and behind these of its edges."""
    return tl.cdiv(view.inner, GROUP) + view.ROOM // GROUP


@triton.jit
def values_of_channel(view):
    """How many elements a channel has, in the precision of the statistics."""
    return (tl.cast(view.outer, view.INDEX) * (view.inner + view.EDGES)).to(view.ACCUMULATOR)


@triton.jit
def zero_tile(view):
    """Where a tile's elements are added up, each for itself."""
    return tl.zeros([1 if view.RUN else view.BLOCK_C, view.BLOCK_O, view.BLOCK_I], view.ACCUMULATOR)


@triton.jit
def channel_sum(value, view):
    """The sum of a tile for each channel [BLOCK_C], in an order that depends on nothing but the shape."""
    if view.RUN:
        total = run_sum(value, view)
    else:
        total = tile_sum(value, view.CHANNELS_LAST)
    return total


@triton.jit
def channel_sums(first, second, view):
    """The same of two tiles at once."""
    if view.RUN:
        both = run_sums(first, second, view)
    else:
        both = tile_sums(first, second, view.CHANNELS_LAST)
    return both


@triton.jit
def sum_to_edges(value, LANES: tl.constexpr):
    """[BLOCK_C, BLOCK_O, BLOCK_I] -> [BLOCK_C, 1, LANES]: what a thread holds side by side, to be added to edges."""
    BLOCK_C: tl.constexpr = value.shape[0]
    NEIGHBOURS: tl.constexpr = value.shape[1] * value.shape[2] // LANES
    return tl.sum(tl.reshape(value, [BLOCK_C, LANES, NEIGHBOURS]), 2)[:, None, :]


@triton.jit
def spread(value, view):
    """[BLOCK_C] in a shape that meets the elements of a tile."""
    if view.RUN:
        wide = over_run(value, view)
    else:
        wide = over_tile(value)
    return wide
