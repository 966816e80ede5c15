"""Square roots and quotients that are correctly rounded, where Triton's own operators approximate in float32."""

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
def reciprocal(value):
    """1 / value."""
    if value.dtype == tl.float64:
        inverse = 1.0 / value
    else:
        inverse = tl.div_rn(1.0, value)
    return inverse


@triton.jit
def inverse_sqrt(value):
    """1 / sqrt(value), each step rounded once; tl.rsqrt is an approximation."""
    return reciprocal(square_root(value))
