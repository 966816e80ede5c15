"""Vectors with one element a channel: parameters, running buffers, and what follows from them."""

import triton
import triton.language as tl

VECTORS = ("weight", "bias", "running_mean", "running_var", "average_factor", "num_batches_tracked")
"""Arguments that the user holds: kernels take them wherever they begin, so that no launch has to look where."""


@triton.jit
def load_channels(vector, c, channels, ACCUMULATOR: tl.constexpr):
    """Elements [BLOCK_C] of a vector (C,), in the precision of the statistics."""
    return tl.load(vector + c, c < channels, other=0.0).to(ACCUMULATOR)


@triton.jit
def load_statistics(statistics, c, channels, ACCUMULATOR: tl.constexpr):
    """mean and invstd [BLOCK_C] from statistics (2, C)."""
    mean = load_channels(statistics, c, channels, ACCUMULATOR)
    return mean, load_channels(statistics + channels, c, channels, ACCUMULATOR)


@triton.jit
def store_statistics(statistics, c, channels, mean, invstd):
    """Write mean and invstd [BLOCK_C] to statistics (2, C)."""
    tl.store(statistics + c, mean, c < channels)
    tl.store(statistics + channels + c, invstd, c < channels)


@triton.jit
def load_affine(weight, bias, c, channels, ACCUMULATOR: tl.constexpr):
    """weight and bias [BLOCK_C], one and zero where there is none."""
    factor = tl.full(c.shape, 1.0, ACCUMULATOR)
    shift = tl.zeros(c.shape, ACCUMULATOR)
    if weight is not None:
        factor = load_channels(weight, c, channels, ACCUMULATOR)
    if bias is not None:
        shift = load_channels(bias, c, channels, ACCUMULATOR)
    return factor, shift


@triton.jit
def scale_and_shift(weight, bias, c, channels, invstd):
    """The affine map of each channel [BLOCK_C]: y = (x - mean) * scale + shift."""
    factor, shift = load_affine(weight, bias, c, channels, invstd.dtype)
    return factor * invstd, shift


@triton.jit
def dealt(vector, DEAL: tl.constexpr):
    """The same vector [BLOCK_C] of 32 bits; DEAL has each of its elements computed by one thread alone, for all others.

    Otherwise the compiler would have every thread load and compute all those that its tile has to do with. From Triton
    3.9 on it does not repeat what comes from assembly, which is empty here.
    """
    if DEAL:
        vector = tl.inline_asm_elementwise("", "=r,0", [vector], dtype=vector.dtype, is_pure=False, pack=1)
    return vector


@triton.jit
def update_running(buffer, c, channels, value, factor):
    """buffer (C,) <- (1 - factor) buffer + factor value, computed in the precision of the statistics."""
    old = load_channels(buffer, c, channels, value.dtype)
    tl.store(buffer + c, (1.0 - factor) * old + factor * value, c < channels)
