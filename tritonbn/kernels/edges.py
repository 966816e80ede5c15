"""Edges of planes whose sizes are no multiple of an access: the few elements beside what wide accesses can reach.

Such planes begin anywhere in memory, but those of one channel, if they lie a multiple of ALIGN elements apart, all
reach an aligned address after equally many elements: the channel's head, fewer than ALIGN. From there on follows the
interior, `inner` elements, a multiple of ALIGN, which is cut into tiles as any plane is. EDGES elements of each plane
are left over: the head, and what lies behind the interior. Numbered plane after plane they are dealt out to the chunks,
a tile [BLOCK_C, 1, LANES] at a time: in a resident program one to a thread for each wide access to one of its tiles.
"""

import triton
import triton.language as tl

from .affine import affine
from .chunk import where_loaded
from .epilogue import activate
from .gradient import input_gradient
from .tile import over_tile, tile_offsets
from .upstream import gradient_of_z
from .view import sum_to_edges


@triton.jit
def interior(x, c, stride_c, ALIGN: tl.constexpr, EDGES: tl.constexpr):
    """Where the interiors of these channels begin, and the step from one to the next: 0, as each has a pointer."""
    if EDGES:
        begin = (c * stride_c + (ALIGN - 1)) // ALIGN * ALIGN
        x, stride_c = x + begin[:, None, None], stride_c * 0
    return x, stride_c


@triton.jit
def edges_each(chunks, outer, EDGES: tl.constexpr, INDEX: tl.constexpr):
    """How many elements of edges a chunk has of each channel, if it is not one of the last."""
    return tl.cdiv(tl.cast(outer, INDEX) * EDGES, chunks)


@triton.jit
def edges_of(chunk, chunks, outer, EDGES: tl.constexpr, INDEX: tl.constexpr):
    """How many it has."""
    count = 0
    if EDGES:
        each = edges_each(chunks, outer, EDGES, INDEX)
        count = tl.maximum(tl.minimum(tl.cast(outer, INDEX) * EDGES - chunk * each, each), 0)
    return count


@triton.jit
def edge_places(
    t, chunk, chunks, c, channels, outer, outer_1, outer_2, inner,
    stride_o0, stride_o1, stride_o2, stride_c, stride_i,
    OUTER_RANK: tl.constexpr, ALIGN: tl.constexpr, INDEX: tl.constexpr,
    EDGES: tl.constexpr, LANES: tl.constexpr, MASK_C: tl.constexpr,
):  # fmt: skip
    """Element offsets of a tile of a chunk's edges, and which of them exist."""
    number = t * LANES + tl.arange(0, LANES)[None, None, :]
    exists = number < edges_of(chunk, chunks, outer, EDGES, INDEX)
    if MASK_C:
        exists = exists & (c < channels)[:, None, None]
    number += chunk * edges_each(chunks, outer, EDGES, INDEX)
    head = ALIGN - 1 - (c * stride_c + (ALIGN - 1)) % ALIGN
    edge = number % EDGES
    i = edge + tl.where(edge < head[:, None, None], 0, inner)
    offsets = tile_offsets(
        c, number // EDGES, i, outer_1, outer_2, stride_o0, stride_o1, stride_o2, stride_c, stride_i,
        OUTER_RANK, False, 1,
    )  # fmt: skip
    return offsets, exists


@triton.jit
def load_edges(
    x, chunk, chunks, c, channels, outer, outer_1, outer_2, inner,
    stride_o0, stride_o1, stride_o2, stride_c, stride_i,
    OUTER_RANK: tl.constexpr, ALIGN: tl.constexpr, INDEX: tl.constexpr,
    EDGES: tl.constexpr, EDGE_TILES: tl.constexpr, LANES: tl.constexpr, MASK_C: tl.constexpr,
):  # fmt: skip
    """A chunk's edges in tiles of their own dtype, zero where there is no element; and where there is one.

    Of a tensor that is None, zeros.
    """
    tiles, masks = (), ()
    for t in tl.static_range(EDGE_TILES):
        tile, mask = 0.0, False
        if x is not None:
            at, mask = edge_places(
                t, chunk, chunks, c, channels, outer, outer_1, outer_2, inner,
                stride_o0, stride_o1, stride_o2, stride_c, stride_i,
                OUTER_RANK, ALIGN, INDEX, EDGES, LANES, MASK_C,
            )  # fmt: skip
            tile = tl.load(x + at, mask, other=0.0)
        tiles, masks = tiles + (tile,), masks + (mask,)
    return tiles, masks


@triton.jit
def write_edges(
    y, values, chunk, chunks, c, channels, outer, outer_1, outer_2, inner,
    stride_o0, stride_o1, stride_o2, stride_c, stride_i,
    OUTER_RANK: tl.constexpr, ALIGN: tl.constexpr, INDEX: tl.constexpr,
    EDGES: tl.constexpr, LANES: tl.constexpr, MASK_C: tl.constexpr,
):  # fmt: skip
    """Write a chunk's edges, rounded to the tensor's dtype."""
    for t in tl.static_range(len(values)):
        at, mask = edge_places(
            t, chunk, chunks, c, channels, outer, outer_1, outer_2, inner,
            stride_o0, stride_o1, stride_o2, stride_c, stride_i,
            OUTER_RANK, ALIGN, INDEX, EDGES, LANES, MASK_C,
        )  # fmt: skip
        tl.store(y + at, values[t], mask)


@triton.jit
def edges_of_y(edges, beside, mean, scale, shift, slope, ACTIVATION: tl.constexpr):
    """y of tiles of x, and of what lies beside them of the residual."""
    values = ()
    for t in tl.static_range(len(edges)):
        z = affine(edges[t].to(mean.dtype), mean, scale, shift, False, 0, 0) + tl.cast(beside[t], mean.dtype)
        values = values + (activate(z, slope, ACTIVATION),)
    return values


@triton.jit
def gradients_of_edges(edges_dy, edges_x, beside, mean, scale, shift, slope, ACTIVATION: tl.constexpr):
    """dz and x - mean of tiles of dy and x, and of what lies beside them of the residual."""
    gradients, deviations = (), ()
    for t in tl.static_range(len(edges_x)):
        deviation = edges_x[t].to(mean.dtype) - over_tile(mean)
        dz = gradient_of_z(
            edges_dy[t].to(mean.dtype), deviation, beside[t], None, scale, shift, slope, ACTIVATION, False, 0, 0, 1
        )
        gradients, deviations = gradients + (dz,), deviations + (deviation,)
    return gradients, deviations


@triton.jit
def add_edge_gradients(sum_dz, sum_dz_x, gradients, deviations, masks, LANES: tl.constexpr, ACTIVATION: tl.constexpr):
    """The sums of dz and of dz (x - mean), element by element, with those of these edges."""
    sum_dz, sum_dz_x = sum_to_edges(sum_dz, LANES), sum_to_edges(sum_dz_x, LANES)
    for t in tl.static_range(len(gradients)):
        dz = where_loaded(masks[t], gradients[t], ACTIVATION)
        sum_dz += dz
        sum_dz_x += dz * deviations[t]
    return sum_dz, sum_dz_x


@triton.jit
def edges_of_dx(gradients, deviations, scale, x_factor, offset):
    """dx of edges."""
    values = ()
    for t in tl.static_range(len(gradients)):
        values = values + (input_gradient(gradients[t], deviations[t], scale, x_factor, offset, False, 0, 0),)
    return values
