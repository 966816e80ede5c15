"""A chunk that a resident program keeps in registers: a tuple of tiles, as many as its config says.

Of a chunk that finds no room only the first TILES are kept. The others are read twice, TOGETHER at a time: 0 where
there are none.
MASK_O and MASK_I have two bits for each tile of a chunk: the mask that it needs (tile.py), as only the last ones do.
Behind those of the tiles that are kept follow those of TOGETHER others, whichever they are. AT counts them (view.py).
"""

import triton
import triton.language as tl

from .upstream import load_clue
from .view import load_tile, tiles_of_block


@triton.jit
def tiles_and_parts(chunk, chunks, view, holding):
    """The first tile of a chunk, and in how many parts of TOGETHER tiles those follow that it reads again.

    Parts are dealt out as evenly as can be, the last chunks having one more: of the very last some tiles may not exist.
    """
    first, parts = chunk * holding.TILES, 0
    if holding.TOGETHER:
        behind = tiles_of_block(view) - chunks * holding.TILES
        everywhere = tl.cdiv(behind, holding.TOGETHER)
        parts, left = everywhere // chunks, everywhere % chunks
        fuller = chunk - (chunks - left)
        first += (chunk * parts + tl.maximum(fuller, 0)) * holding.TOGETHER
        parts += (fuller >= 0).to(view.INDEX)
    return first, parts


@triton.jit
def load_chunk(x, first, TILES: tl.constexpr, item, view, AT: tl.constexpr = 0):
    """The tiles from `first` on, each in its own dtype and zero where there is no element; and where there is one."""
    tiles, masks = (), ()
    for t in tl.static_range(TILES):
        tile, mask = load_tile(x, first + t, item, view, AT + t)
        tiles, masks = tiles + (tile,), masks + (mask,)
    return tiles, masks


@triton.jit
def load_clues(residual, epilogue, first, TILES: tl.constexpr, item, view, AT: tl.constexpr = 0):
    """What z cannot be known without beside x, of each tile (upstream.py)."""
    clues = ()
    for t in tl.static_range(TILES):
        clues = clues + (load_clue(residual, epilogue, first + t, item, view, AT + t),)
    return clues


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
    """The same 16-bit tiles, from assembly that the compiler cannot look into, and that is empty."""
    copies = ()
    for t in tl.static_range(len(tiles)):
        copy = tl.inline_asm_elementwise("", "=r,0", [tiles[t]], dtype=tiles[t].dtype, is_pure=False, pack=2)
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
