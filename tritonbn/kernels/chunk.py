"""A chunk that a resident program keeps in registers: a tuple of tiles, as many as its config says (holding.py).

Of a chunk that finds no room only the first TILES are kept. The others are read twice, TOGETHER at a time: 0 where
there are none.
MASK_O and MASK_I have two bits for each tile of a chunk: the mask that it needs (tile.py), as only the last ones do.
Behind those of the tiles that are kept follow those of TOGETHER others, whichever they are. AT counts them (view.py).
"""

import triton
import triton.language as tl

from .edges import edges_before
from .upstream import load_clue
from .view import load_tile, tiles_of_block, values_before


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
def values_before_chunk(chunk, chunks, view, holding):
    """How many elements of one channel lie in the chunks before this one: all, where it is the one behind the last."""
    first, _ = tiles_and_parts(chunk, chunks, view, holding)
    first = tl.minimum(first, tiles_of_block(view))  # the last chunk may end behind it, where offsets may not
    return values_before(first, view) + edges_before(chunk, chunks, view)


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
    """What z or its sign depends on beside x, of each tile (upstream.py)."""
    clues = ()
    for t in tl.static_range(TILES):
        clues = clues + (load_clue(residual, epilogue, first + t, item, view, AT + t),)
    return clues
