"""dz, the gradient of z = bn(x) + residual, from that of y = activation(z), a tile at a time."""

import triton
import triton.language as tl

from .epilogue import passes, through_sign, through_silu, unpack_bits
from .view import load_view, locate_bytes, spread


@triton.jit
def load_clue(
    residual, signs, tile, block, c, channels, outer, outer_1, outer_2, inner,
    r_o0, r_o1, r_o2, r_c, r_i,
    OUTER_RANK: tl.constexpr, CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr, INDEX: tl.constexpr,
    INNER_TILES: tl.constexpr, FOLD: tl.constexpr, RUN: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
    MASK_C: tl.constexpr, MASK_O: tl.constexpr, MASK_I: tl.constexpr,
):  # fmt: skip
    """What z cannot be known without beside x: a tile of the residual, or of the bits that the forward pass kept."""
    if signs is not None:
        at, exists = locate_bytes(
            tile, block, channels, outer, inner,
            CHANNELS_LAST, GROUP, INDEX, INNER_TILES, FOLD, RUN, BLOCK_C, BLOCK_O, BLOCK_I,
        )  # fmt: skip
        clue = tl.load(signs + at, exists, other=0)
    elif residual is not None:
        clue, _ = load_view(
            residual, tile, block, c, channels, outer, outer_1, outer_2, inner, r_o0, r_o1, r_o2, r_c, r_i,
            OUTER_RANK, CHANNELS_LAST, ALIGN, INDEX, INNER_TILES, FOLD, RUN,
            BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O, MASK_I,
        )  # fmt: skip
    else:
        clue = 0.0
    return clue


@triton.jit
def gradient_of_z(
    dy, deviation, clue, signs, scale, shift, slope,
    ACTIVATION: tl.constexpr, CHANNELS_LAST: tl.constexpr, FOLD: tl.constexpr, RUN: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """dz from dy and x - mean, tiles in the precision of the statistics."""
    if ACTIVATION is None:
        dz = dy
    elif signs is not None:
        dz = through_sign(dy, unpack_bits(clue, CHANNELS_LAST and RUN == 0, GROUP), slope, ACTIVATION)
    else:
        z = deviation * spread(scale, CHANNELS_LAST, FOLD, RUN, dy.shape[2])
        z += spread(shift, CHANNELS_LAST, FOLD, RUN, dy.shape[2])
        z += tl.cast(clue, dy.dtype)
        if ACTIVATION == "silu":
            dz = through_silu(dy, z)
        else:
            dz = through_sign(dy, passes(z, ACTIVATION), slope, ACTIVATION)
    return dz
