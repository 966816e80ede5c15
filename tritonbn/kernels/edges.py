"""Edges of planes whose sizes are no multiple of an access: the few elements beside what wide accesses can reach.

Such planes begin anywhere in memory, but each reaches an aligned address after fewer than ALIGN elements: its head.
From there on follows the interior, `inner` elements, a multiple of ALIGN, which is cut into tiles as any plane is
(view.py). EDGES elements of each plane are left over: the head, and what lies behind the interior. Numbered plane after
plane they are dealt out to the chunks, a tile [BLOCK_C, 1, LANES] at a time: where they are added up, one to a thread
for each wide access to a tile. A resident program holds the EDGE_TILES of its chunk, others take one after the other.
"""

import triton
import triton.language as tl

from .affine import bn
from .epilogue import activate
from .gradient import input_gradient
from .tile import interior_offsets, plane_offsets
from .upstream import dz_and_deviation, masked_dz


@triton.jit
def edges_each(chunks, view):
    """How many elements of edges a chunk has of each channel, if it is not one of the last."""
    return tl.cdiv(tl.cast(view.outer, view.INDEX) * view.EDGES, chunks)


@triton.jit
def edges_before(chunk, chunks, view):
    """How many elements of edges of each channel the chunks before this one have."""
    before = chunk * 0
    if view.EDGES:
        before = tl.minimum(chunk * edges_each(chunks, view), tl.cast(view.outer, view.INDEX) * view.EDGES)
    return before


@triton.jit
def edge_places(x, t, item, chunks, view):
    """Element offsets in one tensor of a tile of a chunk's edges, and which of them exist."""
    number = t * view.LANES + tl.arange(0, view.LANES)[None, None, :]
    before = edges_before(item.chunk, chunks, view)
    exists = number < edges_before(item.chunk + 1, chunks, view) - before
    if view.MASK_C:
        exists = exists & (item.c < view.channels)[:, None, None]
    number += before
    edge, begin = number % view.EDGES, plane_offsets(x, item.c, number // view.EDGES, view)
    head = interior_offsets(begin, view) - begin
    return begin + edge + tl.where(edge < head, 0, view.inner), exists


@triton.jit
def edge_tiles(chunks, view):
    """How many tiles of edges a chunk has at most."""
    return tl.cdiv(edges_each(chunks, view), view.LANES)


@triton.jit
def load_edges(x, first, TILES: tl.constexpr, item, chunks, view):
    """Tiles of a chunk's edges in their own dtype, zero where there is no element; and where there is one.

    Of a tensor that there is not, zeros.
    """
    tiles, masks = (), ()
    for t in tl.static_range(TILES):
        tile, mask = 0.0, False
        if x.base is not None:
            at, mask = edge_places(x, first + t, item, chunks, view)
            tile = tl.load(x.base + at, mask, other=0.0)
        tiles, masks = tiles + (tile,), masks + (mask,)
    return tiles, masks


@triton.jit
def write_edges(y, values, first, item, chunks, view):
    """Write these tiles of a chunk's edges, rounded to the tensor's dtype."""
    for t in tl.static_range(len(values)):
        at, mask = edge_places(y, first + t, item, chunks, view)
        tl.store(y.base + at, values[t], mask)


@triton.jit
def y_of_edges(edges, residual, affine, epilogue, view):
    """y of tiles of x and of the residual."""
    values = ()
    for t in tl.static_range(len(edges)):
        z = bn(edges[t].to(view.ACCUMULATOR) - affine.mean, affine)
        values = values + (activate(z + tl.cast(residual[t], view.ACCUMULATOR), epilogue),)
    return values


@triton.jit
def gradients_of_edges(edges_dy, edges_x, residual, affine, epilogue, view):
    """dz and x - mean of tiles of dy, of x and of the residual."""
    gradients, deviations = (), ()
    for t in tl.static_range(len(edges_x)):
        dz, deviation = dz_and_deviation(edges_dy[t], edges_x[t], residual[t], affine, epilogue, view)
        gradients, deviations = gradients + (dz,), deviations + (deviation,)
    return gradients, deviations


@triton.jit
def load_dz_of_edges(x, dy, residual, affine, epilogue, t, item, chunks, view):
    """A tile of dz and of x - mean, and which elements exist."""
    edges_dy, masks = load_edges(dy, t, 1, item, chunks, view)
    edges_x, _ = load_edges(x, t, 1, item, chunks, view)
    edges_residual, _ = load_edges(residual, t, 1, item, chunks, view)
    gradients, deviations = gradients_of_edges(edges_dy, edges_x, edges_residual, affine, epilogue, view)
    return gradients, deviations, masks


@triton.jit
def add_edge_gradients(sum_dz, sum_dz_x, gradients, deviations, masks, epilogue, view):
    """The sums of dz and of dz (x - mean), one for each of so many elements, with those of these edges."""
    for t in tl.static_range(len(gradients)):
        dz = masked_dz(gradients[t], masks[t], epilogue)
        sum_dz += dz
        sum_dz_x += dz * deviations[t]
    return sum_dz, sum_dz_x


@triton.jit
def dx_of_edges(gradients, deviations, scale, x_factor, offset):
    """dx of tiles of dz and of x - mean."""
    values = ()
    for t in tl.static_range(len(gradients)):
        values = values + (input_gradient(gradients[t], deviations[t], scale, x_factor, offset),)
    return values
