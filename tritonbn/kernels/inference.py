"""Inference: one sweep with given statistics, which also saves (mean, invstd) for a backward pass if one may come."""

import triton
import triton.language as tl

from .channel import load_channels, scale_and_shift, store_statistics
from .rounding import inverse_sqrt
from .tile import channels_and_chunk, chunk_tiles, load_tile, over_tile, store_tile, tile_indices, tile_mask


@triton.jit
def inference_kernel(
    x, y,  # (N, C, ...) of any strides
    weight, bias,  # (C,) or None
    running_mean, running_var,  # (C,)
    statistics,  # (2, C), written: mean, invstd; or None
    eps: tl.float64,
    channels, outer, outer_1, outer_2, inner, chunks, tiles_per_chunk,
    x_o0, x_o1, x_o2, x_c, x_i,
    y_o0, y_o1, y_o2, y_c, y_i,
    ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr,
    OUTER_RANK: tl.constexpr, CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
    MASK_C: tl.constexpr, MASK_O: tl.constexpr, MASK_I: tl.constexpr,
):  # fmt: skip
    """y = (x - running_mean) / sqrt(running_var + eps) weight + bias."""
    c, chunk = channels_and_chunk(channels, BLOCK_C, INDEX)
    first, last = chunk_tiles(chunk, tiles_per_chunk, outer, inner, BLOCK_O, BLOCK_I, INDEX)
    given_mean = load_channels(running_mean, c, channels, ACCUMULATOR)
    given_var = load_channels(running_var, c, channels, ACCUMULATOR)
    given_invstd = inverse_sqrt(given_var + tl.full([BLOCK_C], eps, ACCUMULATOR))
    if statistics is not None:
        if chunk == 0:
            store_statistics(statistics, c, channels, given_mean, given_invstd)
    scale, shift = scale_and_shift(weight, bias, c, channels, given_invstd)
    for tile in range(first, last):
        o, i = tile_indices(tile, inner, BLOCK_O, BLOCK_I, INDEX)
        mask = tile_mask(c, o, i, channels, outer, inner, CHANNELS_LAST, ALIGN, MASK_C, MASK_O, MASK_I)
        value = load_tile(
            x, mask, c, o, i, outer_1, outer_2, x_o0, x_o1, x_o2, x_c, x_i,
            OUTER_RANK, CHANNELS_LAST, ALIGN, ACCUMULATOR,
        )  # fmt: skip
        value = (value - over_tile(given_mean)) * over_tile(scale) + over_tile(shift)
        store_tile(
            y, value, mask, c, o, i, outer_1, outer_2, y_o0, y_o1, y_o2, y_c, y_i,
            OUTER_RANK, CHANNELS_LAST, ALIGN,
        )  # fmt: skip
