"""Elements in the precision of the statistics, in which all is computed."""

import triton
import triton.language as tl

PAIR = tl.constexpr("shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;")
"""Two bfloat16 of a register as float32: an instruction each, where the compiler takes two for every second one."""


def has_pairs(value, _semantic=None):
    """Whether every thread has two bfloat16 of it at least, on one of NVIDIA's GPUs."""
    options = _semantic and _semantic.builder.options
    on_cuda = bool(options) and options.backend_name == "cuda" and value.dtype == tl.bfloat16
    return tl.constexpr(on_cuda and value.numel.value >= 2 * 32 * options.num_warps)


has_pairs.__triton_builtin__ = True


@triton.jit
def wide(value, view):
    """The same elements, exactly."""
    if has_pairs(value):
        result = tl.inline_asm_elementwise(PAIR, "=r,=r,r", [value], dtype=tl.float32, is_pure=True, pack=2)
    else:
        result = value.to(view.ACCUMULATOR)
    return result
