"""Inference: one sweep with given statistics, which also saves (mean, invstd) for a backward pass if one may come."""

import triton
import triton.language as tl

from .affine import store_y
from .channel import VECTORS, dealt, load_channels, scale_and_shift, store_statistics
from .chunk import load_chunk
from .edges import edges_of_y, interior, load_edges, write_edges
from .rounding import invstd_of
from .view import block_and_chunk, block_channels


@triton.jit(do_not_specialize_on_alignment=VECTORS)
def inference_kernel(
    x, y,  # (N, C, ...) of any strides
    residual,  # like x, or None
    weight, bias,  # (C,) or None
    running_mean, running_var,  # (C,)
    statistics,  # (2, C), written: mean, invstd; or None
    signs,  # bytes or None, written: a bit an element, whether the activation passes its gradient
    eps: tl.float64, slope: tl.float64,
    channels, outer, outer_1, outer_2, inner, blocks, chunks,
    x_o0, x_o1, x_o2, x_c, x_i,
    y_o0, y_o1, y_o2, y_c, y_i,
    r_o0, r_o1, r_o2, r_c, r_i,
    ACTIVATION: tl.constexpr, ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr,
    OUTER_RANK: tl.constexpr, CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr,
    INNER_TILES: tl.constexpr, FOLD: tl.constexpr, RUN: tl.constexpr, GROUP: tl.constexpr,
    TILES: tl.constexpr, DEAL: tl.constexpr, EDGES: tl.constexpr, EDGE_TILES: tl.constexpr, LANES: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
    MASK_C: tl.constexpr, MASK_O: tl.constexpr, MASK_I: tl.constexpr,
):  # fmt: skip
    """y = activation((x - running_mean) / sqrt(running_var + eps) weight + bias + residual)."""
    block, chunk = block_and_chunk(tl.program_id(0), blocks)
    c, chunk = block_channels(block, BLOCK_C, INDEX), chunk.to(INDEX)
    x_in, x_step = interior(x, c, x_c, ALIGN, EDGES)
    y_in, y_step = interior(y, c, y_c, ALIGN, EDGES)
    r_in, r_step = residual, r_c
    if residual is not None:
        r_in, r_step = interior(residual, c, r_c, ALIGN, EDGES)
    held, _ = load_chunk(
        x_in, chunk * TILES, TILES, block, c, channels, outer, outer_1, outer_2, inner, x_o0, x_o1, x_o2, x_step, x_i,
        OUTER_RANK, CHANNELS_LAST, ALIGN, INDEX, INNER_TILES, FOLD, RUN,
        BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O, MASK_I,
    )  # fmt: skip
    edges, _ = load_edges(
        x, chunk, chunks, c, channels, outer, outer_1, outer_2, inner, x_o0, x_o1, x_o2, x_c, x_i,
        OUTER_RANK, ALIGN, INDEX, EDGES, EDGE_TILES, LANES, MASK_C,
    )  # fmt: skip
    mean = load_channels(running_mean, c, channels, ACCUMULATOR)
    variance = load_channels(running_var, c, channels, ACCUMULATOR)
    invstd = invstd_of(variance, eps)
    if statistics is not None:
        if chunk == 0:
            store_statistics(statistics, c, channels, mean, invstd)
    scale, shift = scale_and_shift(weight, bias, c, channels, invstd)
    mean, scale, shift = dealt(mean, DEAL), dealt(scale, DEAL), dealt(shift, DEAL)
    for t in tl.static_range(TILES):
        store_y(
            held[t].to(ACCUMULATOR), mean, scale, shift, y_in, r_in, signs, slope,
            chunk * TILES + t, block, c, channels, outer, outer_1, outer_2, inner,
            y_o0, y_o1, y_o2, y_step, y_i, r_o0, r_o1, r_o2, r_step, r_i,
            ACTIVATION, OUTER_RANK, CHANNELS_LAST, ALIGN, INDEX, INNER_TILES, FOLD, RUN, GROUP,
            BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O >> 2 * t & 3, MASK_I >> 2 * t & 3,
        )  # fmt: skip
    if EDGES:
        added, _ = load_edges(
            residual, chunk, chunks, c, channels, outer, outer_1, outer_2, inner, r_o0, r_o1, r_o2, r_c, r_i,
            OUTER_RANK, ALIGN, INDEX, EDGES, EDGE_TILES, LANES, MASK_C,
        )  # fmt: skip
        write_edges(
            y, edges_of_y(edges, added, mean, scale, shift, slope, ACTIVATION),
            chunk, chunks, c, channels, outer, outer_1, outer_2, inner, y_o0, y_o1, y_o2, y_c, y_i,
            OUTER_RANK, ALIGN, INDEX, EDGES, LANES, MASK_C,
        )  # fmt: skip
