"""Square roots and quotients correctly rounded, where Triton approximates in float32; products that nothing fuses."""

import triton
import triton.language as tl


@triton.jit
def square_root(value):
    """sqrt(value)."""
    if value.dtype == tl.float64:
        root = tl.sqrt(value)
    else:
        root = tl.sqrt_rn(value)
    return root


@triton.jit
def quotient(value, divisor):
    """value / divisor."""
    if divisor.dtype == tl.float64:
        result = value / divisor
    else:
        result = tl.div_rn(value, divisor)
    return result


@triton.jit
def product(first, second):
    """first times second of one dtype, to be added up over lanes, rounded before.

    Otherwise each of two lanes may fuse its own product with the other's rounded one: their sums differ by a rounding.
    """
    return tl.fma(first, second, tl.full([], 0.0, first.dtype))


@triton.jit
def reciprocal(value):
    """1 / value."""
    return quotient(1.0, value)


@triton.jit
def invstd_of(variance, eps):
    """1 / sqrt(variance + eps), each step rounded once; tl.rsqrt is an approximation."""
    return reciprocal(square_root(variance + tl.full(variance.shape, eps, variance.dtype)))
