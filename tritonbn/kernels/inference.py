"""Inference: one sweep with given statistics, which also saves (mean, invstd) for a backward pass if one may come."""

import triton
import triton.language as tl

from .affine import store_y
from .channel import VECTORS, dealt, load_affine, load_channels, spread_affine, store_statistics
from .chunk import load_chunk
from .edges import load_edges, write_y_of_edges
from .records import Epilogue, Item, Strided, View
from .rounding import invstd_of
from .view import block_and_chunk, block_channels


@triton.jit(do_not_specialize_on_alignment=VECTORS)
def inference_kernel(
    x, y,  # (N, C, ...) of any strides
    residual,  # like x, or None
    weight, bias,  # (C,) or None
    running_mean, running_var,  # (C,)
    statistics,  # (2, C), written: mean, invstd; or None
    signs,  # bytes or None, written: one bit per element, whether the activation passes its gradient
    eps: tl.float64, slope: tl.float64,
    channels, outer, outer_1, outer_2, inner, blocks, chunks,
    x_o0, x_o1, x_o2, x_c, x_i,
    y_o0, y_o1, y_o2, y_c, y_i,
    r_o0, r_o1, r_o2, r_c, r_i,
    ACTIVATION: tl.constexpr, ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr,
    OUTER_RANK: tl.constexpr, CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr,
    INNER_TILES: tl.constexpr, FOLD: tl.constexpr, RUN: tl.constexpr, GROUP: tl.constexpr,
    TILES: tl.constexpr, DEAL: tl.constexpr,
    EDGES: tl.constexpr, EDGE_TILES: tl.constexpr, LANES: tl.constexpr, ROOM: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
    MASK_C: tl.constexpr, MASK_O: tl.constexpr, MASK_I: tl.constexpr,
):  # fmt: skip
    """y = activation((x - running_mean) / sqrt(running_var + eps) weight + bias + residual)."""
    normalize(
        Strided(x, x_o0, x_o1, x_o2, x_c, x_i), Strided(y, y_o0, y_o1, y_o2, y_c, y_i),
        Strided(residual, r_o0, r_o1, r_o2, r_c, r_i), weight, bias, running_mean, running_var, statistics, eps,
        Epilogue(signs, slope, ACTIVATION, GROUP), blocks, chunks,
        View(
            channels, outer, outer_1, outer_2, inner, ACCUMULATOR, INDEX, OUTER_RANK, CHANNELS_LAST, ALIGN,
            BLOCK_C, BLOCK_O, BLOCK_I, MASK_C, MASK_O, MASK_I, INNER_TILES, FOLD, RUN, EDGES, EDGE_TILES, LANES,
            ROOM,
        ),
        TILES, DEAL,
    )  # fmt: skip


@triton.jit
def normalize(
    x, y, residual, weight, bias, running_mean, running_var, statistics, eps, epilogue, blocks, chunks, view,
    TILES: tl.constexpr, DEAL: tl.constexpr,
):  # fmt: skip
    """y of one chunk; the first of a block also writes its statistics, if they are wanted."""
    block, chunk = block_and_chunk(tl.program_id(0), blocks)
    item = Item(block, chunk.to(view.INDEX), block_channels(block, view.BLOCK_C, view.INDEX))
    first = item.chunk * TILES
    held, _ = load_chunk(x, first, TILES, item, view)
    edges, _ = load_edges(x, 0, view.EDGE_TILES, item, chunks, view)
    mean, variance = load_channels(running_mean, item.c, view), load_channels(running_var, item.c, view)
    factor, shift = load_affine(weight, bias, item.c, view)  # under way while the root is computed
    invstd = invstd_of(variance, eps)
    if statistics is not None:
        if chunk == 0:
            store_statistics(statistics, item.c, view, mean, invstd)
    affine = spread_affine(dealt(mean, DEAL), dealt(factor * invstd, DEAL), dealt(shift, DEAL), view)
    for t in tl.static_range(TILES):
        store_y(held[t], affine, y, residual, epilogue, first + t, item, view, t)
    if view.EDGES:
        edges_residual, _ = load_edges(residual, 0, view.EDGE_TILES, item, chunks, view)
        write_y_of_edges(edges, edges_residual, affine, y, epilogue, 0, item, chunks, view)
