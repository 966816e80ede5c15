"""y = activation(bn(x) + residual), bn(x) = (x - mean) scale + shift, a tile at a time."""

import triton
import triton.language as tl

from .epilogue import activate, pack_bits, passes
from .view import load_tile, locate_bytes, store_tile
from .wide import wide


@triton.jit
def bn(deviation, affine):
    """bn(x) of a tile of x - mean."""
    return deviation * affine.scale + affine.shift


@triton.jit
def store_y(value, affine, y, residual, epilogue, tile, item, view, AT: tl.constexpr = 0):
    """Write the y of a tile of x, and the bits by which its gradient is known where x alone does not tell."""
    z = bn(wide(value, view) - affine.mean, affine)
    if residual.base is not None:
        added, _ = load_tile(residual, tile, item, view, AT)
        z += added.to(z.dtype)
    store_tile(y, activate(z, epilogue), tile, item, view, AT)
    if epilogue.signs is not None:
        at, exists = locate_bytes(tile, item, view, epilogue.GROUP)
        tl.store(epilogue.signs + at, pack_bits(passes(z, epilogue), epilogue, view), exists)
