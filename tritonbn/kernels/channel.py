"""Vectors with one element a channel: parameters, running buffers, and what follows from them.

Of each those elements c [BLOCK_C] are loaded and stored that exist.
"""

import triton
import triton.language as tl

from .records import Affine
from .view import spread

VECTORS = ("weight", "bias", "running_mean", "running_var", "average_factor", "num_batches_tracked")
"""Arguments that the user holds: kernels take them wherever they begin, so that no launch has to look where."""


@triton.jit
def load_channels(vector, c, view):
    """The elements c of a vector (C,), in the precision of the statistics."""
    return tl.load(vector + c, c < view.channels, other=0.0).to(view.ACCUMULATOR)


@triton.jit
def load_statistics(statistics, c, view):
    """mean and invstd [BLOCK_C] from statistics (2, C)."""
    mean = load_channels(statistics, c, view)
    return mean, load_channels(statistics + view.channels, c, view)


@triton.jit
def store_statistics(statistics, c, view, mean, invstd):
    """Write mean and invstd [BLOCK_C] to statistics (2, C)."""
    tl.store(statistics + c, mean, c < view.channels)
    tl.store(statistics + view.channels + c, invstd, c < view.channels)


@triton.jit
def load_affine(weight, bias, c, view):
    """weight and bias [BLOCK_C], one and zero where there is none."""
    factor = tl.full(c.shape, 1.0, view.ACCUMULATOR)
    shift = tl.zeros(c.shape, view.ACCUMULATOR)
    if weight is not None:
        factor = load_channels(weight, c, view)
    if bias is not None:
        shift = load_channels(bias, c, view)
    return factor, shift


@triton.jit
def load_affine_map(statistics, weight, bias, c, view):
    """The affine map of channels [BLOCK_C], for all elements of a tile."""
    mean, invstd = load_statistics(statistics, c, view)
    factor, shift = load_affine(weight, bias, c, view)
    return spread_affine(mean, factor * invstd, shift, view)


@triton.jit
def spread_affine(mean, scale, shift, view):
    """The affine map that consists of these numbers [BLOCK_C], for all elements of a tile."""
    return Affine(spread(mean, view), spread(scale, view), spread(shift, view))


@triton.jit
def load_scale(statistics, weight, c, view):
    """weight invstd, and invstd [BLOCK_C]."""
    factor, _ = load_affine(weight, None, c, view)
    invstd = load_channels(statistics + view.channels, c, view)
    return factor * invstd, invstd


@triton.jit
def dealt(vector, DEAL: tl.constexpr):
    """The same vector [BLOCK_C] of 32 bits; DEAL has each of its elements computed by one thread alone, for all others.

    Otherwise the compiler would have every thread load and compute all those that its tile has to do with. From Triton
    3.9 on it does not repeat what comes from assembly, which is empty here.
    """
    if DEAL:
        vector = tl.inline_asm_elementwise("", "=r,0", [vector], dtype=vector.dtype, is_pure=False, pack=1)
    return vector
