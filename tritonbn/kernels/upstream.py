"""dz, the gradient of z = bn(x) + residual, from that of y = activation(z), a tile at a time."""

import triton
import triton.language as tl

from .affine import bn
from .epilogue import passes, through_sign, through_silu, unpack_bits
from .view import load_tile, locate_bytes
from .wide import wide


@triton.jit
def load_clue(residual, epilogue, tile, item, view, AT: tl.constexpr = 0):
    """What z or its sign depends on beside x: a tile of the residual, or of the bits that the forward pass kept."""
    if epilogue.signs is not None:
        at, exists = locate_bytes(tile, item, view, epilogue.GROUP)
        clue = tl.load(epilogue.signs + at, exists, other=0)
    elif residual.base is not None:
        clue, _ = load_tile(residual, tile, item, view, AT)
    else:
        clue = 0.0
    return clue


@triton.jit
def gradient_of_z(dy, deviation, clue, affine, epilogue, view):
    """dz from dy and x - mean, tiles in the precision of the statistics."""
    if epilogue.ACTIVATION is None:
        dz = dy
    elif epilogue.signs is not None:
        dz = through_sign(dy, unpack_bits(clue, epilogue, view), epilogue)
    else:
        z = bn(deviation, affine) + tl.cast(clue, dy.dtype)
        if epilogue.ACTIVATION == "silu":
            dz = through_silu(dy, z)
        else:
            dz = through_sign(dy, passes(z, epilogue), epilogue)
    return dz


@triton.jit
def dz_and_deviation(dy, x, clue, affine, epilogue, view):
    """dz and x - mean, of tiles as they came from memory."""
    deviation = wide(x, view) - affine.mean
    return gradient_of_z(wide(dy, view), deviation, clue, affine, epilogue, view), deviation


@triton.jit
def load_dz(x, dy, residual, affine, epilogue, tile, item, view):
    """Tiles of dz and of x - mean, and which elements exist."""
    tile_dy, mask = load_tile(dy, tile, item, view)
    tile_x, _ = load_tile(x, tile, item, view)
    clue = load_clue(residual, epilogue, tile, item, view)
    dz, deviation = dz_and_deviation(tile_dy, tile_x, clue, affine, epilogue, view)
    return dz, deviation, mask


@triton.jit
def masked_dz(dz, mask, epilogue):
    """dz, zero where there is no element: without an activation it is dy, which was loaded so."""
    if epilogue.ACTIVATION is not None:
        dz = tl.where(mask, dz, 0.0)
    return dz
