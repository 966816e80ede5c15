"""How tiles are held while their program computes: assembly, nearly all of it empty, that compilers cannot look into.

A kernel names what it wants as HOLD (records.py). Assembly that is not pure stays in the order in which it is written,
and so does what depends on it.
"""

import triton
import triton.language as tl


@triton.jit
def loaded(tiles, HOLD: tl.constexpr):
    """The same tiles: no value of them is computed with before all loads above are under way."""
    if HOLD is not None:
        tiles = opaque(tiles)
    return tiles


@triton.jit
def packed(tiles, HOLD: tl.constexpr, ALONE: tl.constexpr = False):
    """The same tiles, if "packed" as they came from memory: the compiler cannot keep converted values instead.

    With ALONE, where nobody is waited for in between, CUDA's assembler cannot either, which sees what LLVM does not.
    """
    if HOLD == "packed":
        if ALONE:
            tiles = combined_with_zero(tiles)
        else:
            tiles = opaque(tiles)
    return tiles


@triton.jit
def anew(first, HOLD: tl.constexpr, ALONE: tl.constexpr = False):
    """The same tile number, so that the compiler computes offsets anew: it would keep all of them in the wait."""
    if HOLD is not None:
        word: tl.constexpr = "=l,0" if first.dtype == tl.int64 else "=r,0"
        if ALONE:
            first += tl.program_id(1)
        first = tl.inline_asm_elementwise("", word, [first], dtype=first.dtype, is_pure=False, pack=1)
    return first


@triton.jit
def opaque(tiles):
    """The same tiles of 16 or 32 bits, from assembly that the compiler cannot look into, and that is empty."""
    copies = ()
    for t in tl.static_range(len(tiles)):
        dtype = tiles[t].dtype
        copy = tl.inline_asm_elementwise(
            "", "=r,0", [tiles[t]], dtype=dtype, is_pure=False, pack=32 // dtype.primitive_bitwidth
        )
        copies = copies + (copy,)
    return copies


@triton.jit
def combined_with_zero(tiles):
    """The same 16-bit tiles, combined with a zero that no compiler knows: grids have no second axis."""
    zero = tl.program_id(1).to(tl.int16)
    copies = ()
    for t in tl.static_range(len(tiles)):
        copy = tl.inline_asm_elementwise(
            "xor.b32 $0, $1, $2;", "=r,r,r", [tiles[t], zero], dtype=tiles[t].dtype, is_pure=False, pack=2
        )
        copies = copies + (copy,)
    return copies


@triton.jit
def in_turn(tiles, sums, HOLD: tl.constexpr):
    """The same tiles and float32 sums: nothing of these tiles is computed before the sums are there.

    Otherwise LLVM adds up all tiles side by side, of 16 bits converts all elements first: there is no room for them.
    """
    if HOLD is not None:
        settled = ()
        for n in tl.static_range(len(sums)):
            copy = tl.inline_asm_elementwise("", "=r,0", [sums[n]], dtype=tl.float32, is_pure=False, pack=1)
            settled = settled + (copy,)
        tiles, sums = opaque(tiles), settled
    return tiles, sums
