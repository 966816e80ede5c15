"""Training forward in two phases of one kernel: "statistics" of every chunk, then "normalize", which merges them."""

import triton
import triton.language as tl

from .channel import scale_and_shift, store_statistics, update_running
from .rounding import inverse_sqrt
from .tile import (
    channels_and_chunk,
    chunk_tiles,
    elements_before,
    load_tile,
    over_tile,
    store_tile,
    tile_indices,
    tile_mask,
    tile_sum,
)
from .welford import centred_moments, finite_or_zero, first_element, merge_chunks, partial_pointers


@triton.jit
def forward_kernel(
    x, y,  # (N, C, ...) of any strides
    weight, bias,  # (C,) or None
    running_mean, running_var,  # (C,) or None, updated in place
    average_factor,  # () or None: a weight of the new statistics that lives on the device, instead of momentum
    statistics,  # (2, C), written: mean, invstd
    partials,  # (2, C, BLOCK_K) workspace: mean - first element, M2
    momentum: tl.float64, eps: tl.float64,
    channels, outer, outer_1, outer_2, inner, chunks, tiles_per_chunk,
    x_o0, x_o1, x_o2, x_c, x_i,
    y_o0, y_o1, y_o2, y_c, y_i,
    PHASE: tl.constexpr, CORRECTION: tl.constexpr, ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr,
    OUTER_RANK: tl.constexpr, CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_K: tl.constexpr,
    MASK_C: tl.constexpr, MASK_O: tl.constexpr, MASK_I: tl.constexpr,
):  # fmt: skip
    """Every chunk's mean and M2; then the merged statistics, the running buffers and y."""
    c, chunk = channels_and_chunk(channels, BLOCK_C, INDEX)
    first, last = chunk_tiles(chunk, tiles_per_chunk, outer, inner, BLOCK_O, BLOCK_I, INDEX)
    reference = first_element(x, c, channels, x_c, ACCUMULATOR)

    if PHASE == "statistics":
        o, i = tile_indices(first, inner, BLOCK_O, BLOCK_I, INDEX)
        mask = tile_mask(c, o, i, channels, outer, inner, CHANNELS_LAST, ALIGN, MASK_C, MASK_O, MASK_I)
        value = load_tile(
            x, mask, c, o, i, outer_1, outer_2, x_o0, x_o1, x_o2, x_c, x_i,
            OUTER_RANK, CHANNELS_LAST, ALIGN, ACCUMULATOR,
        )  # fmt: skip
        before = elements_before(first, outer, inner, BLOCK_O, BLOCK_I)
        count = elements_before(first + 1, outer, inner, BLOCK_O, BLOCK_I) - before
        relative = tl.where(mask, value - over_tile(reference), 0.0)
        centre = finite_or_zero(reference + tile_sum(relative) / count.to(ACCUMULATOR))
        deviation = tl.where(mask, value - over_tile(centre), 0.0)
        squares = deviation * deviation
        for tile in range(first + 1, last):
            o, i = tile_indices(tile, inner, BLOCK_O, BLOCK_I, INDEX)
            mask = tile_mask(c, o, i, channels, outer, inner, CHANNELS_LAST, ALIGN, MASK_C, MASK_O, MASK_I)
            value = load_tile(
                x, mask, c, o, i, outer_1, outer_2, x_o0, x_o1, x_o2, x_c, x_i,
                OUTER_RANK, CHANNELS_LAST, ALIGN, ACCUMULATOR,
            )  # fmt: skip
            value = tl.where(mask, value - over_tile(centre), 0.0)
            deviation += value
            squares += value * value
        count = elements_before(last, outer, inner, BLOCK_O, BLOCK_I) - before
        offset, M2 = centred_moments(tile_sum(deviation), tile_sum(squares), count.to(ACCUMULATOR))
        mean_at, M2_at = partial_pointers(partials, c, channels, chunk, BLOCK_K)
        tl.store(mean_at, centre - reference + offset, c < channels)
        tl.store(M2_at, M2, c < channels)

    if PHASE == "normalize":
        relative_mean, variance = merge_chunks(
            partials, c, channels, outer, inner, chunks, tiles_per_chunk, BLOCK_O, BLOCK_I, BLOCK_K, INDEX
        )
        batch_mean = reference + relative_mean
        batch_invstd = inverse_sqrt(variance + tl.full([BLOCK_C], eps, ACCUMULATOR))
        if chunk == 0:
            store_statistics(statistics, c, channels, batch_mean, batch_invstd)
            if running_mean is not None:
                factor = tl.full([BLOCK_C], momentum, ACCUMULATOR)
                if average_factor is not None:
                    factor = tl.load(average_factor).to(ACCUMULATOR)
                total = (tl.cast(outer, INDEX) * inner).to(ACCUMULATOR)
                update_running(running_mean, c, channels, batch_mean, factor)
                update_running(running_var, c, channels, variance * (total / (total - CORRECTION)), factor)
        scale, shift = scale_and_shift(weight, bias, c, channels, batch_invstd)
        for tile in range(first, last):
            o, i = tile_indices(tile, inner, BLOCK_O, BLOCK_I, INDEX)
            mask = tile_mask(c, o, i, channels, outer, inner, CHANNELS_LAST, ALIGN, MASK_C, MASK_O, MASK_I)
            value = load_tile(
                x, mask, c, o, i, outer_1, outer_2, x_o0, x_o1, x_o2, x_c, x_i,
                OUTER_RANK, CHANNELS_LAST, ALIGN, ACCUMULATOR,
            )  # fmt: skip
            value = (value - over_tile(batch_mean)) * over_tile(scale) + over_tile(shift)
            store_tile(
                y, value, mask, c, o, i, outer_1, outer_2, y_o0, y_o1, y_o2, y_c, y_i,
                OUTER_RANK, CHANNELS_LAST, ALIGN,
            )  # fmt: skip
