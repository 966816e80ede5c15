"""Edges of planes whose sizes are no multiple of an access: the few elements beside what wide accesses can reach.

Such planes begin anywhere in memory, but each reaches an aligned address after fewer than ALIGN elements: its head.
From there on follows the interior, `inner` elements, a multiple of ALIGN, which is cut into tiles as any plane is
(view.py). EDGES elements of each plane are left over: the head, and what lies behind the interior. Numbered plane after
plane they are dealt out to the chunks, a tile [BLOCK_C, 1, LANES] at a time: where they are added up, one to a thread
for each wide access to a tile. A resident program holds the EDGE_TILES of its chunk, others take one after the other.
Where bits are kept each plane takes ROOM lanes, whole bytes of bits, of which some are empty; otherwise ROOM is 0.
"""

import triton
import triton.language as tl

from .affine import bn
from .epilogue import activate, pack_bits, passes
from .gradient import input_gradient
from .tile import interior_offsets, plane_offsets
from .upstream import dz_and_deviation, masked_dz
from .view import bytes_of_plane


@triton.jit
def lanes_each(chunks, view):
    """How many lanes the edges of each channel take in a chunk that is not one of the last."""
    if view.ROOM:
        lanes = tl.cdiv(tl.cast(view.outer, view.INDEX), chunks) * view.ROOM
    else:
        lanes = tl.cdiv(tl.cast(view.outer, view.INDEX) * view.EDGES, chunks)
    return lanes


@triton.jit
def lanes_before(chunk, chunks, view):
    """How many they take in all chunks before this one."""
    PLANE: tl.constexpr = view.ROOM if view.ROOM else view.EDGES
    return tl.minimum(chunk * lanes_each(chunks, view), tl.cast(view.outer, view.INDEX) * PLANE)


@triton.jit
def edges_before(chunk, chunks, view):
    """How many elements of edges of each channel the chunks before this one have."""
    before = chunk * 0
    if view.EDGES:
        before = lanes_before(chunk, chunks, view)
        if view.ROOM:
            before = before // view.ROOM * view.EDGES
    return before


@triton.jit
def edge_tiles(chunks, view):
    """How many tiles of edges a chunk has at most."""
    return tl.cdiv(lanes_each(chunks, view), view.LANES)


@triton.jit
def lane_numbers(t, item, chunks, view, GROUP: tl.constexpr):
    """The numbers [1, 1, LANES] of the lanes of a tile, counted in groups, and which of them the chunk has."""
    number = t * (view.LANES // GROUP) + tl.arange(0, view.LANES // GROUP)[None, None, :]
    before = lanes_before(item.chunk, chunks, view) // GROUP
    exists = number < lanes_before(item.chunk + 1, chunks, view) // GROUP - before
    if view.MASK_C:
        exists = exists & (item.c < view.channels)[:, None, None]
    return number + before, exists


@triton.jit
def edge_places(x, t, item, chunks, view):
    """Element offsets in one tensor of a tile of a chunk's edges, and which of them exist."""
    PLANE: tl.constexpr = view.ROOM if view.ROOM else view.EDGES
    number, exists = lane_numbers(t, item, chunks, view, 1)
    edge, begin = number % PLANE, plane_offsets(x, item.c, number // PLANE, view)
    if view.ROOM:
        exists = exists & (edge < view.EDGES)
    head = interior_offsets(begin, view) - begin
    return begin + edge + tl.where(edge < head, 0, view.inner), exists


@triton.jit
def edge_bytes(t, item, chunks, view, GROUP: tl.constexpr):
    """Where the bits of such a tile lie, behind those of the interiors, and which of their bytes exist."""
    number, exists = lane_numbers(t, item, chunks, view, GROUP)
    row = item.c[:, None, None] * view.outer + number // (view.ROOM // GROUP)
    return row * bytes_of_plane(view, GROUP) + tl.cdiv(view.inner, GROUP) + number % (view.ROOM // GROUP), exists


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
def load_edge_clues(residual, epilogue, first, TILES: tl.constexpr, item, chunks, view):
    """What z or its sign depends on beside x (upstream.py): tiles of the residual, or of the bits that were kept."""
    clues, _ = load_edges(residual, first, TILES, item, chunks, view)
    if epilogue.signs is not None:
        clues = ()
        for t in tl.static_range(TILES):
            at, exists = edge_bytes(first + t, item, chunks, view, epilogue.GROUP)
            clues = clues + (tl.load(epilogue.signs + at, exists, other=0),)
    return clues


@triton.jit
def write_edges(y, values, first, item, chunks, view):
    """Write these tiles of a chunk's edges, rounded to the tensor's dtype."""
    for t in tl.static_range(len(values)):
        at, mask = edge_places(y, first + t, item, chunks, view)
        tl.store(y.base + at, values[t], mask)


@triton.jit
def write_y_of_edges(edges, residual, affine, y, epilogue, first, item, chunks, view):
    """Write y of tiles of x and of the residual, and the bits by which the gradient is known."""
    for t in tl.static_range(len(edges)):
        z = bn(edges[t].to(view.ACCUMULATOR) - affine.mean, affine) + tl.cast(residual[t], view.ACCUMULATOR)
        write_edges(y, (activate(z, epilogue),), first + t, item, chunks, view)
        if epilogue.signs is not None:
            at, exists = edge_bytes(first + t, item, chunks, view, epilogue.GROUP)
            tl.store(epilogue.signs + at, pack_bits(passes(z, epilogue), epilogue, view), exists)


@triton.jit
def gradients_of_edges(edges_dy, edges_x, clues, affine, epilogue, view):
    """dz and x - mean of tiles of dy, of x and of clues."""
    gradients, deviations = (), ()
    for t in tl.static_range(len(edges_x)):
        dz, deviation = dz_and_deviation(edges_dy[t], edges_x[t], clues[t], affine, epilogue, view)
        gradients, deviations = gradients + (dz,), deviations + (deviation,)
    return gradients, deviations


@triton.jit
def load_dz_of_edges(x, dy, residual, affine, epilogue, t, item, chunks, view):
    """A tile of dz and of x - mean, and which elements exist."""
    edges_dy, masks = load_edges(dy, t, 1, item, chunks, view)
    edges_x, _ = load_edges(x, t, 1, item, chunks, view)
    clues = load_edge_clues(residual, epilogue, t, 1, item, chunks, view)
    gradients, deviations = gradients_of_edges(edges_dy, edges_x, clues, affine, epilogue, view)
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
