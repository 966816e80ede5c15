"""What belongs together, under one name: kernels take numbers one by one, and hand them on to their helpers like this.

Fields in capitals are constexprs. They stay so when a record is made in a call, and only there: Triton makes numbers of
whatever is assigned to a variable.
"""

from typing import Any, NamedTuple

import triton.language as tl


class Strided(NamedTuple):
    """A tensor (N, C, ...) that view.py walks.

    base is a pointer to its first element, or None if there is no tensor; strides are in elements: of the up to three
    outer axes, of channels, and of inner.
    """

    base: Any
    o0: Any
    o1: Any
    o2: Any
    c: Any
    i: Any


class View(NamedTuple):
    """How the tensors of a launch are seen as (channel, outer, inner), and cut into tiles: tile.py.

    The fields with defaults are of folded tiles (fold.py), and of edges (edges.py). MASKS_O and MASKS_I have two bits
    for each tile of a chunk (chunk.py).
    """

    channels: Any
    outer: Any
    outer_1: Any
    outer_2: Any
    inner: Any
    ACCUMULATOR: Any
    INDEX: Any
    OUTER_RANK: Any
    CHANNELS_LAST: Any
    ALIGN: Any
    BLOCK_C: Any
    BLOCK_O: Any
    BLOCK_I: Any
    MASK_C: Any
    MASKS_O: Any
    MASKS_I: Any
    INNER_TILES: Any = tl.constexpr(-1)
    FOLD: Any = tl.constexpr(0)
    RUN: Any = tl.constexpr(0)
    EDGES: Any = tl.constexpr(0)
    EDGE_TILES: Any = tl.constexpr(0)
    LANES: Any = tl.constexpr(0)
    ROOM: Any = tl.constexpr(0)


class Item(NamedTuple):
    """What a program works on: a chunk of a block of channels, and their numbers c [BLOCK_C]."""

    block: Any
    chunk: Any
    c: Any


class Affine(NamedTuple):
    """bn(x) = (x - mean) scale + shift: affine.py. Each meets the elements of a tile (view.py, spread)."""

    mean: Any
    scale: Any
    shift: Any


class Epilogue(NamedTuple):
    """What follows bn(x) + residual: epilogue.py. signs are bytes of GROUP bits that are kept of it, or None."""

    signs: Any
    slope: Any
    ACTIVATION: Any
    GROUP: Any


class Exchange(NamedTuple):
    """By what the programs of so many chunks of so many blocks hand each other results: exchange.py, partials.py."""

    partials: Any
    counters: Any
    blocks: Any
    chunks: Any
    BLOCK_K: Any
    SPAN: Any
    BLOCK_M: Any


class Running(NamedTuple):
    """The running buffers, and how they take in new statistics: finish.py."""

    mean: Any
    var: Any
    average_factor: Any
    num_batches_tracked: Any
    momentum: Any
    CORRECTION: Any
    CUMULATIVE: Any


class Holding(NamedTuple):
    """How a resident program holds its chunk: chunk.py. Other programs use only TILES, of a whole chunk, and STAGES.

    HOLD is "packed" where tiles have to stay as they came from memory, "loaded" where all loads have to be under way
    first, None where the compiler may do as it likes. Of the other tiles TOGETHER are loaded at a time, in loops of
    STAGES. AT_ONCE is how many items a program has where all run at once, 2 for any number of them, and otherwise 0.
    """

    HOLD: Any
    TILES: Any
    TOGETHER: Any
    STAGES: Any
    AT_ONCE: Any
