"""Tiles of a tensor seen as (channel, outer, inner): where they lie, which elements exist, how they are loaded.

The reduced axes of a batch norm are `outer` (up to three axes that cannot be merged) and `inner` (the fastest of them).
A tile is [BLOCK_C, BLOCK_O, BLOCK_I]. The tiles of a channel block are numbered outer-major; a chunk is a run of them.
INDEX is the integer type of every offset: tl.int32, or tl.int64 where an offset can pass 2^31.
MASK_O and MASK_I are PARTLY where a tile may lack elements along outer or inner, WHOLLY where it may lack all of them,
and 0 where it lacks none.
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
def channels_and_chunk(channels, BLOCK_C: tl.constexpr, INDEX: tl.constexpr):
    """This program's channels [BLOCK_C] and chunk number; neighbouring programs take neighbouring channels."""
    blocks = tl.cdiv(channels, BLOCK_C)
    program = tl.program_id(0)
    c = (program % blocks).to(INDEX) * BLOCK_C + tl.arange(0, BLOCK_C)
    return c, program // blocks


@triton.jit
def chunk_tiles(
    chunk, tiles_per_chunk, outer, inner,
    BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """The first tile of a chunk, and the one after its last."""
    tiles = tl.cdiv(tl.cast(outer, INDEX), BLOCK_O) * tl.cdiv(tl.cast(inner, INDEX), BLOCK_I)
    first = tl.minimum(chunk.to(INDEX) * tiles_per_chunk, tiles)
    return first, tl.minimum(first + tiles_per_chunk, tiles)


@triton.jit
def tile_position(tile, inner, BLOCK_I: tl.constexpr, INNER_TILES: tl.constexpr):
    """How many tiles lie before a tile along outer, and along inner.

    INNER_TILES is how many there are along inner, where the compiler should know it; 0 where none lies behind another
    along outer; -1 where it is found by a division.
    """
    if INNER_TILES == 0:
        row, column = tile * 0, tile
    elif INNER_TILES > 0:
        row, column = tile // INNER_TILES, tile % INNER_TILES
    else:
        inner_tiles = tl.cdiv(inner, BLOCK_I)
        row, column = tile // inner_tiles, tile % inner_tiles
    return row, column


@triton.jit
def elements_before(tile, outer, inner, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, INNER_TILES: tl.constexpr = -1):
    """How many elements of one channel lie in the tiles before `tile`."""
    row, column = tile_position(tile, inner, BLOCK_I, INNER_TILES)
    rows = tl.minimum(row * BLOCK_O, outer)
    height = tl.minimum(outer - rows, BLOCK_O)
    return rows * inner + height * tl.minimum(column * BLOCK_I, inner)


@triton.jit
def tile_indices(
    tile, inner, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, INDEX: tl.constexpr, INNER_TILES: tl.constexpr = -1
):
    """Outer [1, BLOCK_O, 1] and inner [1, 1, BLOCK_I] indices of a tile."""
    tile = tl.cast(tile, INDEX)  # the interpreter counts loops in int32, whatever the bounds are
    row, column = tile_position(tile, inner, BLOCK_I, INNER_TILES)
    o = row * BLOCK_O + tl.arange(0, BLOCK_O)
    i = column * BLOCK_I + tl.arange(0, BLOCK_I)
    return o[None, :, None], i[None, None, :]


@triton.jit
def tile_mask(
    c, o, i, channels, outer, inner,
    CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr,
    MASK_C: tl.constexpr, MASK_O: tl.constexpr, MASK_I: tl.constexpr,
):  # fmt: skip
    """Which elements exist; the fast axis's bound is a known multiple of ALIGN, or no access would be wide."""
    mask = tl.full([1, 1, 1], True, tl.int1)
    if MASK_C:
        mask = mask & (c[:, None, None] < multiple(channels, ALIGN if CHANNELS_LAST else 1))
    if MASK_O == PARTLY:
        mask = mask & (o < outer)
    if MASK_I == PARTLY:
        mask = mask & (i < multiple(inner, 1 if CHANNELS_LAST else ALIGN))
    return mask


@triton.jit
def tile_offsets(
    c, o, i, outer_1, outer_2,
    stride_o0, stride_o1, stride_o2, stride_c, stride_i,
    OUTER_RANK: tl.constexpr, CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """Element offsets of a tile; `o` counts over OUTER_RANK axes, the faster ones of sizes outer_1 and outer_2."""
    offsets = c[:, None, None] * multiple(stride_c, 1 if CHANNELS_LAST else ALIGN)
    offsets += i * multiple(stride_i, ALIGN if CHANNELS_LAST else 1)
    if OUTER_RANK == 3:
        offsets += o % outer_2 * multiple(stride_o2, ALIGN)
        o = o // outer_2
    if OUTER_RANK >= 2:
        offsets += o % outer_1 * multiple(stride_o1, ALIGN)
        o = o // outer_1
    return offsets + o * multiple(stride_o0, ALIGN)


@triton.jit
def load_tile(
    x, mask, c, o, i, outer_1, outer_2,
    stride_o0, stride_o1, stride_o2, stride_c, stride_i,
    OUTER_RANK: tl.constexpr, CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """A tile of one tensor in the precision of the statistics, zero where the mask is false."""
    offsets = tile_offsets(
        c, o, i, outer_1, outer_2, stride_o0, stride_o1, stride_o2, stride_c, stride_i, OUTER_RANK, CHANNELS_LAST, ALIGN
    )
    return tl.load(x + offsets, mask, other=0.0).to(ACCUMULATOR)


@triton.jit
def store_tile(
    y, value, mask, c, o, i, outer_1, outer_2,
    stride_o0, stride_o1, stride_o2, stride_c, stride_i,
    OUTER_RANK: tl.constexpr, CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """Write a tile of one tensor, rounded to its dtype."""
    offsets = tile_offsets(
        c, o, i, outer_1, outer_2, stride_o0, stride_o1, stride_o2, stride_c, stride_i, OUTER_RANK, CHANNELS_LAST, ALIGN
    )
    tl.store(y + offsets, value, mask)


@triton.jit
def tile_sum(value):
    """[BLOCK_C, BLOCK_O, BLOCK_I] -> [BLOCK_C], in an order that depends on nothing but the shape.

    A thread holds neighbouring channels. Only what lies in one thread can be split, so before that the compiler deals
    the numbers out again, a channel to a thread: by one way through shared memory instead of a shuffle for every
    channel and step.
    """
    BLOCK_C: tl.constexpr = value.shape[0]
    ROWS: tl.constexpr = value.shape[1] * value.shape[2]
    DEALT: tl.constexpr = MOST_DEALT // BLOCK_C if BLOCK_C < MOST_DEALT else 1
    BLOCK_R: tl.constexpr = DEALT if BLOCK_C > 1 and DEALT < ROWS else ROWS  # min is for tensors before Triton 3.6
    value = tl.reshape(value, [BLOCK_C, ROWS])
    if BLOCK_R < ROWS:  # what a thread holds lies so far apart
        value = tl.sum(tl.reshape(value, [BLOCK_C, ROWS // BLOCK_R, BLOCK_R]), 1)
    if BLOCK_C > 1 and BLOCK_R > 1:
        halves = tl.permute(tl.reshape(value, [BLOCK_C, 2, BLOCK_R // 2]), (2, 0, 1))
        first, second = tl.split(halves)
        total = column_sum(first + second)
    else:
        total = tl.sum(value, 1)
    return total


@triton.jit
def column_sum(value):
    """[R, C] -> [C], what a thread holds first, so that nowhere many numbers are added one after another."""
    R: tl.constexpr = value.shape[0]
    C: tl.constexpr = value.shape[1]
    if R >= 4:
        value = tl.sum(tl.reshape(value, [4, R // 4, C]), 0)
    return tl.sum(value, 0)


@triton.jit
def over_tile(value):
    """[BLOCK_C] -> [BLOCK_C, 1, 1], to meet the elements of a tile."""
    return value[:, None, None]
