"""y = activation((x - mean) scale + shift + residual), a tile at a time."""

import triton
import triton.language as tl

from .epilogue import activate, pack_bits, passes
from .view import load_view, locate_bytes, spread, store_view


@triton.jit
def affine(value, mean, scale, shift, CHANNELS_LAST: tl.constexpr, FOLD: tl.constexpr, RUN: tl.constexpr):
    """(x - mean) scale + shift of a tile."""
    BLOCK_I: tl.constexpr = value.shape[2]
    z = (value - spread(mean, CHANNELS_LAST, FOLD, RUN, BLOCK_I)) * spread(scale, CHANNELS_LAST, FOLD, RUN, BLOCK_I)
    return z + spread(shift, CHANNELS_LAST, FOLD, RUN, BLOCK_I)


@triton.jit
def store_y(
    value, mean, scale, shift, y, residual, signs, slope,
    tile, block, c, channels, outer, outer_1, outer_2, inner,
    y_o0, y_o1, y_o2, y_c, y_i,
    r_o0, r_o1, r_o2, r_c, r_i,
    ACTIVATION: tl.constexpr, OUTER_RANK: tl.constexpr, CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr,
    INDEX: tl.constexpr, INNER_TILES: tl.constexpr, FOLD: tl.constexpr, RUN: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
    MASK_C: tl.constexpr, MASK_O: tl.constexpr, MASK_I: tl.constexpr,
):  # fmt: skip
    """Write the y of a tile of x, and the bits by which its gradient is known where x alone does not tell."""
    z = affine(value, mean, scale, shift, CHANNELS_LAST, FOLD, RUN)
    if residual is not None:
        added, _ = load_view(
            residual, tile, block, c, channels, outer, outer_1, outer_2, inner, r_o0, r_o1, r_o2, r_c, r_i,
            OUTER_RANK, CHANNELS_LAST, ALIGN, INDEX, INNER_TILES, FOLD, RUN,
            BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O, MASK_I,
        )  # fmt: skip
        z += added.to(z.dtype)
    store_view(
        y, activate(z, slope, ACTIVATION), tile, block, c, channels, outer, outer_1, outer_2, inner,
        y_o0, y_o1, y_o2, y_c, y_i,
        OUTER_RANK, CHANNELS_LAST, ALIGN, INDEX, INNER_TILES, FOLD, RUN,
        BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O, MASK_I,
    )  # fmt: skip
    if signs is not None:
        at, exists = locate_bytes(
            tile, block, channels, outer, inner,
            CHANNELS_LAST, GROUP, INDEX, INNER_TILES, FOLD, RUN, BLOCK_C, BLOCK_O, BLOCK_I,
        )  # fmt: skip
        bits = pack_bits(passes(z, ACTIVATION), CHANNELS_LAST and RUN == 0, GROUP)
        tl.store(signs + at, bits, exists)
