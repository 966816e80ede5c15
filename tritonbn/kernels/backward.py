"""Backward in phases of one kernel: "sums" of every chunk, then "gradients", which merges them.

With xhat = (x - mean) invstd and n elements a channel (Ioffe and Szegedy, 2015):
dbias = sum dy, dweight = sum dy xhat, dx = weight invstd (dy - dbias / n - xhat dweight / n);
with given statistics (TRAINING false) dx = weight invstd dy, which needs no sum.
"""

import triton
import triton.language as tl

from .channel import load_channels, load_statistics
from .tile import (
    channels_and_chunk,
    chunk_tiles,
    load_tile,
    over_tile,
    store_tile,
    tile_indices,
    tile_mask,
    tile_sum,
)
from .welford import load_partials, partial_pointers


@triton.jit
def backward_kernel(
    x, dy, dx,  # (N, C, ...) of any strides; dx is None where it is not wanted
    weight,  # (C,) or None
    statistics,  # (2, C): mean, invstd
    dweight, dbias,  # (C,), written, or None
    partials,  # (2, C, BLOCK_K) workspace: sum of dy, sum of dy (x - mean); None where no sum is wanted
    channels, outer, outer_1, outer_2, inner, chunks, tiles_per_chunk,
    x_o0, x_o1, x_o2, x_c, x_i,
    dy_o0, dy_o1, dy_o2, dy_c, dy_i,
    dx_o0, dx_o1, dx_o2, dx_c, dx_i,
    PHASE: tl.constexpr, TRAINING: tl.constexpr, ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr,
    OUTER_RANK: tl.constexpr, CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_K: tl.constexpr,
    MASK_C: tl.constexpr, MASK_O: tl.constexpr, MASK_I: tl.constexpr,
):  # fmt: skip
    """Every chunk's sums; then dweight, dbias and dx."""
    c, chunk = channels_and_chunk(channels, BLOCK_C, INDEX)
    first, last = chunk_tiles(chunk, tiles_per_chunk, outer, inner, BLOCK_O, BLOCK_I, INDEX)
    mean, invstd = load_statistics(statistics, c, channels, ACCUMULATOR)
    scale = invstd
    if weight is not None:
        scale *= load_channels(weight, c, channels, ACCUMULATOR)

    if PHASE == "sums":
        sum_dy = tl.zeros([BLOCK_C, BLOCK_O, BLOCK_I], ACCUMULATOR)
        sum_dy_x = tl.zeros([BLOCK_C, BLOCK_O, BLOCK_I], ACCUMULATOR)
        for tile in range(first, last):
            o, i = tile_indices(tile, inner, BLOCK_O, BLOCK_I, INDEX)
            mask = tile_mask(c, o, i, channels, outer, inner, CHANNELS_LAST, ALIGN, MASK_C, MASK_O, MASK_I)
            gradient = load_tile(
                dy, mask, c, o, i, outer_1, outer_2, dy_o0, dy_o1, dy_o2, dy_c, dy_i,
                OUTER_RANK, CHANNELS_LAST, ALIGN, ACCUMULATOR,
            )  # fmt: skip
            if partials is not None:
                value = load_tile(
                    x, mask, c, o, i, outer_1, outer_2, x_o0, x_o1, x_o2, x_c, x_i,
                    OUTER_RANK, CHANNELS_LAST, ALIGN, ACCUMULATOR,
                )  # fmt: skip
                sum_dy += gradient
                sum_dy_x += gradient * (value - over_tile(mean))
            if dx is not None and not TRAINING:
                store_tile(
                    dx, gradient * over_tile(scale), mask, c, o, i, outer_1, outer_2, dx_o0, dx_o1, dx_o2, dx_c, dx_i,
                    OUTER_RANK, CHANNELS_LAST, ALIGN,
                )  # fmt: skip
        if partials is not None:
            dy_at, dy_x_at = partial_pointers(partials, c, channels, chunk, BLOCK_K)
            tl.store(dy_at, tile_sum(sum_dy), c < channels)
            tl.store(dy_x_at, tile_sum(sum_dy_x), c < channels)

    if PHASE == "gradients":
        chunk_dy, chunk_dy_x = load_partials(partials, c, channels, chunks, BLOCK_K)
        sum_dy, sum_dy_x = tl.sum(chunk_dy, 1), tl.sum(chunk_dy_x, 1)
        if chunk == 0:
            if dbias is not None:
                tl.store(dbias + c, sum_dy, c < channels)
            if dweight is not None:
                tl.store(dweight + c, sum_dy_x * invstd, c < channels)
        if dx is not None and TRAINING:
            total = (tl.cast(outer, INDEX) * inner).to(ACCUMULATOR)
            mean_dy = sum_dy / total
            slope = sum_dy_x / total * invstd * invstd
            for tile in range(first, last):
                o, i = tile_indices(tile, inner, BLOCK_O, BLOCK_I, INDEX)
                mask = tile_mask(c, o, i, channels, outer, inner, CHANNELS_LAST, ALIGN, MASK_C, MASK_O, MASK_I)
                gradient = load_tile(
                    dy, mask, c, o, i, outer_1, outer_2, dy_o0, dy_o1, dy_o2, dy_c, dy_i,
                    OUTER_RANK, CHANNELS_LAST, ALIGN, ACCUMULATOR,
                )  # fmt: skip
                value = load_tile(
                    x, mask, c, o, i, outer_1, outer_2, x_o0, x_o1, x_o2, x_c, x_i,
                    OUTER_RANK, CHANNELS_LAST, ALIGN, ACCUMULATOR,
                )  # fmt: skip
                gradient = gradient - over_tile(mean_dy) - (value - over_tile(mean)) * over_tile(slope)
                store_tile(
                    dx, gradient * over_tile(scale), mask, c, o, i, outer_1, outer_2, dx_o0, dx_o1, dx_o2, dx_c, dx_i,
                    OUTER_RANK, CHANNELS_LAST, ALIGN,
                )  # fmt: skip
