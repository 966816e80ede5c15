"""Tiles of a tensor seen as (channel, outer, inner): where they lie, and which elements exist.

The reduced axes of a batch norm are `outer` (up to three axes that cannot be merged) and `inner` (the fastest of them).
A tile is [BLOCK_C, BLOCK_O, BLOCK_I]. The tiles of a channel block are numbered outer-major; a chunk is a run of them.
INDEX is the integer type of every offset: tl.int32, or tl.int64 where an offset can pass 2^31.
A tile's MASK_O and MASK_I are PARTLY where it may lack elements along outer or inner, WHOLLY where it may lack all of
them, and 0 where it lacks none.
"""

import triton
import triton.language as tl

PARTLY, WHOLLY = tl.constexpr(1), tl.constexpr(2)

MOST_DEALT = tl.constexpr(2048)
"""Elements of a tile that are passed through shared memory to be added up: 8 or 16 KiB."""


@triton.jit
def multiple(value, ALIGN: tl.constexpr):
    """The same integer, which the host promises to be a multiple of ALIGN: so the compiler knows it too."""
    tl.assume(value >= 0)
    return value // ALIGN * ALIGN


@triton.jit
def tile_count(view):
    """How many tiles a block of channels has."""
    rows = tl.cdiv(tl.cast(view.outer, view.INDEX), view.BLOCK_O)
    return rows * tl.cdiv(tl.cast(view.inner, view.INDEX), view.BLOCK_I)


@triton.jit
def chunk_tiles(chunk, tiles_per_chunk, tiles, view):
    """The first tile of a chunk, and the one after its last, of so many `tiles`."""
    first = tl.minimum(chunk.to(view.INDEX) * tiles_per_chunk, tiles)
    return first, tl.minimum(first + tiles_per_chunk, tiles)


@triton.jit
def tile_position(tile, view):
    """How many tiles lie before a tile along outer, and along inner.

    INNER_TILES is how many there are along inner, where the compiler should know it; 0 where none lies behind another
    along outer; -1 where it is found by a division.
    """
    if view.INNER_TILES == 0:
        row, column = tile * 0, tile
    elif view.INNER_TILES > 0:
        row, column = tile // view.INNER_TILES, tile % view.INNER_TILES
    else:
        inner_tiles = tl.cdiv(view.inner, view.BLOCK_I)
        row, column = tile // inner_tiles, tile % inner_tiles
    return row, column


@triton.jit
def elements_before(tile, view):
    """How many elements of one channel lie in the tiles before `tile`."""
    row, column = tile_position(tile, view)
    rows = tl.minimum(row * view.BLOCK_O, view.outer)
    height = tl.minimum(view.outer - rows, view.BLOCK_O)
    return rows * view.inner + height * tl.minimum(column * view.BLOCK_I, view.inner)


@triton.jit
def tile_indices(tile, view, BLOCK_I: tl.constexpr):
    """Outer [1, BLOCK_O, 1] and inner [1, 1, BLOCK_I] indices of a tile, which may count `inner` in groups."""
    tile = tl.cast(tile, view.INDEX)  # the interpreter counts loops in int32, whatever the bounds are
    row, column = tile_position(tile, view)
    o = row * view.BLOCK_O + tl.arange(0, view.BLOCK_O)
    i = column * BLOCK_I + tl.arange(0, BLOCK_I)
    return o[None, :, None], i[None, None, :]


@triton.jit
def tile_mask(c, o, i, view, MASK_O: tl.constexpr, MASK_I: tl.constexpr):
    """Which elements exist; the fast axis's bound is a known multiple of ALIGN, or no access would be wide."""
    mask = tl.full([1, 1, 1], True, tl.int1)
    if view.MASK_C:
        mask = mask & (c[:, None, None] < multiple(view.channels, view.ALIGN if view.CHANNELS_LAST else 1))
    if MASK_O == PARTLY:
        mask = mask & (o < view.outer)
    if MASK_I == PARTLY:
        mask = mask & (i < multiple(view.inner, 1 if view.CHANNELS_LAST else view.ALIGN))
    return mask


@triton.jit
def tile_offsets(x, c, o, i, view, ALIGN: tl.constexpr):
    """Element offsets of a tile of one tensor."""
    offsets = c[:, None, None] * multiple(x.c, 1 if view.CHANNELS_LAST else ALIGN)
    offsets += i * multiple(x.i, ALIGN if view.CHANNELS_LAST else 1)
    return outer_offsets(offsets, x, o, view, ALIGN)


@triton.jit
def plane_offsets(x, c, o, view):
    """Where planes begin, wherever that is."""
    return outer_offsets(c[:, None, None] * multiple(x.c, 1), x, o, view, 1)


@triton.jit
def outer_offsets(offsets, x, o, view, ALIGN: tl.constexpr):
    """Further on along the outer axes: `o` counts over OUTER_RANK of them, the faster ones outer_1 and outer_2."""
    if view.OUTER_RANK == 3:
        offsets += o % view.outer_2 * multiple(x.o2, ALIGN)
        o = o // view.outer_2
    if view.OUTER_RANK >= 2:
        offsets += o % view.outer_1 * multiple(x.o1, ALIGN)
        o = o // view.outer_1
    return offsets + o * multiple(x.o0, ALIGN)


@triton.jit
def interior_offsets(begin, view):
    """Where the interiors of planes that begin at `begin` begin (edges.py); unsigned, so that division is a shift."""
    UNSIGNED: tl.constexpr = tl.uint64 if tl.int64 == view.INDEX else tl.uint32
    above = tl.cast(begin + (view.ALIGN - 1), UNSIGNED)
    return tl.cast(above // view.ALIGN * view.ALIGN, view.INDEX)


@triton.jit
def tile_sum(value, DEAL: tl.constexpr):
    """[BLOCK_C, BLOCK_O, BLOCK_I] -> [BLOCK_C], in an order that depends on nothing but the shape.

    DEAL where neighbouring channels lie side by side; else an axis at a time, as Triton 3.4 to 3.6 add up wrong lanes
    where two axes that were made one lie apart.
    """
    if value.shape[0] == 1:
        total = tl.sum(one_row(value), 1)
    elif DEAL:
        total = column_sum(dealt_out(value))
    else:
        total = tl.sum(tl.sum(value, 2), 1)
    return total


@triton.jit
def tile_sums(first, second, DEAL: tl.constexpr):
    """The same of two tiles at once."""
    if first.shape[0] == 1:
        both = tl.reduce((one_row(first), one_row(second)), 1, add_both)
    elif DEAL:
        both = column_sums(dealt_out(first), dealt_out(second))
    else:
        both = tl.reduce(tl.reduce((first, second), 2, add_both), 1, add_both)
    return both


@triton.jit
def one_row(value):
    """[BLOCK_C, BLOCK_O, BLOCK_I] -> [BLOCK_C, BLOCK_O BLOCK_I]."""
    return tl.reshape(value, [value.shape[0], value.shape[1] * value.shape[2]])


@triton.jit
def add_both(first, second, more_first, more_second):
    """Two sums, each with what belongs to it."""
    return first + more_first, second + more_second


@triton.jit
def dealt_out(value):
    """[BLOCK_C, BLOCK_O, BLOCK_I] -> [R, BLOCK_C], whose columns still have the same sums.

    A thread holds neighbouring channels. Only what lies in one thread can be split, so before that the compiler deals
    the numbers out again, a channel to a thread: by one way through shared memory instead of a shuffle for every
    channel and step.
    """
    BLOCK_C: tl.constexpr = value.shape[0]
    ROWS: tl.constexpr = value.shape[1] * value.shape[2]
    DEALT: tl.constexpr = MOST_DEALT // BLOCK_C if BLOCK_C < MOST_DEALT else 1
    BLOCK_R: tl.constexpr = DEALT if DEALT < ROWS else ROWS  # min is for tensors before Triton 3.6
    value = one_row(value)
    if BLOCK_R < ROWS:  # what a thread holds lies so far apart
        value = tl.sum(tl.reshape(value, [BLOCK_C, ROWS // BLOCK_R, BLOCK_R]), 1)
    if BLOCK_R > 1:
        first, second = tl.split(tl.permute(tl.reshape(value, [BLOCK_C, 2, BLOCK_R // 2]), (2, 0, 1)))
        value = first + second
    else:
        value = tl.permute(value, (1, 0))
    return value


@triton.jit
def column_sum(value):
    """[R, C] -> [C], what a thread holds first, so that nowhere many numbers are added one after another."""
    return tl.sum(four_rows_added(value), 0)


@triton.jit
def column_sums(first, second):
    """The same of two tensors at once."""
    return tl.reduce((four_rows_added(first), four_rows_added(second)), 0, add_both)


@triton.jit
def four_rows_added(value):
    """[R, C] -> [R / 4, C], where there are so many."""
    if value.shape[0] >= 4:
        value = tl.sum(tl.reshape(value, [4, value.shape[0] // 4, value.shape[1]]), 0)
    return value


@triton.jit
def over_tile(value):
    """[BLOCK_C] -> [BLOCK_C, 1, 1], to meet the elements of a tile."""
    return value[:, None, None]
