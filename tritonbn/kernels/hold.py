"""A tile that stays in registers as it came from memory."""

import triton
import triton.language as tl


@triton.jit
def as_loaded(tile, PACKED: tl.constexpr):
    """The same tile; if PACKED (16-bit, CUDA) in a copy that the compiler cannot keep converted instead."""
    if PACKED:
        tile = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [tile], dtype=tile.dtype, is_pure=False, pack=2)
    return tile
