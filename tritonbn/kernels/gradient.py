"""The gradients that follow from a channel's sums of dz and of dz (x - mean)."""

import triton
import triton.language as tl


@triton.jit
def store_gradients(dweight, dbias, c, view, invstd, total_dz, total_dz_x):
    """Write dweight and dbias [BLOCK_C], each where it is wanted."""
    if dbias is not None:
        tl.store(dbias + c, total_dz, c < view.channels)
    if dweight is not None:
        tl.store(dweight + c, total_dz_x * invstd, c < view.channels)


@triton.jit
def coefficients(scale, invstd, total_dz, total_dz_x, values):
    """x_factor and offset [BLOCK_C] of dx = scale dz + x_factor (x - mean) + offset, for so many values per channel."""
    return -scale * (invstd * (invstd * (total_dz_x / values))), -scale * (total_dz / values)


@triton.jit
def input_gradient(dz, deviation, scale, x_factor, offset):
    """A tile of dx from those of dz and x - mean, and what of its channels meets their elements."""
    return deviation * x_factor + offset + dz * scale
