"""How the work is cut: tiles, chunks and warps for a geometry. Data and arithmetic only, the same on every machine.

Nothing here asks which GPU is there: so the same input gives the same partial sums, and the same bits, everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from .geometry import Geometry

Mode = Literal["forward", "inference", "backward"]

TILE_ELEMENTS = 2048
"""Elements of a tile, half as many in 64 bits."""

ELEMENTS_PER_THREAD = 16
"""Elements of each tensor that a thread of a 32-wide warp holds at once: two 16-byte accesses in 16 bits."""

TENSORS_MOVED = {"forward": 3, "inference": 2, "backward": 5}
"""How often a tensor's worth of elements is read or written in all launches together."""

FILLING_PROGRAMS = 1024
"""Programs of four warps that keep a large GPU busy: about eight on each SM, 32 KB of input in flight there."""

PROGRAM_BYTES = 8192
"""What starting a program costs, as memory traffic."""

MERGED_NUMBERS = 4096
"""Most partial results, of each kind, that a program merges in one piece."""


@dataclass(frozen=True)
class Config:
    """One way to run the kernels of a mode."""

    block_c: int
    block_o: int
    block_i: int
    """The tile: channels x outer x inner, powers of two."""
    tiles_per_chunk: int = 1
    """Tiles that one program takes, one after the other."""
    num_warps: int = 4

    def tiles(self, geometry: Geometry) -> int:
        """Tiles of one block of channels."""
        return math.ceil(geometry.outer_size / self.block_o) * math.ceil(geometry.inner / self.block_i)

    def chunks(self, geometry: Geometry) -> int:
        """Chunks of one block of channels."""
        return math.ceil(self.tiles(geometry) / self.tiles_per_chunk)

    def channel_blocks(self, geometry: Geometry) -> int:
        """Blocks of channels: programs per chunk."""
        return math.ceil(geometry.channels / self.block_c)


def power_of_two(size: int) -> int:
    """The least power of two that is not below size."""
    return 1 << (size - 1).bit_length()


def heuristic(geometry: Geometry, itemsize: int, mode: Mode) -> Config:
    """The config of least modelled cost, from the geometry and the bytes an element alone.

    Inference takes one tile a program, like a copy: it has nothing to merge.
    """
    candidates = []
    for tile in tiles(geometry, itemsize):
        most = 1 if mode == "inference" else power_of_two(tile.tiles(geometry))
        for tiles_per_chunk in (1 << bit for bit in range(most.bit_length())):
            config = replace(tile, tiles_per_chunk=tiles_per_chunk)
            if mode == "inference" or power_of_two(config.chunks(geometry)) * config.block_c <= MERGED_NUMBERS:
                candidates.append(config)
    return min(candidates, key=lambda config: cost(geometry, config, itemsize, mode))


def tiles(geometry: Geometry, itemsize: int) -> Iterator[Config]:
    """Tiles worth considering, as configs of one tile a chunk; a row of one is never shorter than a 32-byte sector."""
    elements = TILE_ELEMENTS // max(1, itemsize // 4)
    sector = 32 // itemsize
    if geometry.channels_last:
        filling = elements // power_of_two(geometry.values)
        for width in (max(filling, 4 * sector), 4 * sector, 2 * sector, sector):
            block_c = min(width, power_of_two(geometry.channels))
            block_i = fitting_block(geometry.inner, elements // block_c)
            block_o = min(elements // (block_c * block_i), power_of_two(geometry.outer_size))
            yield tile_config(geometry, itemsize, block_c, block_o, block_i)
    else:
        block_i = fitting_block(geometry.inner, elements, least=4 * sector)
        block_o = fitting_block(geometry.outer_size, elements // block_i)
        block_c = min(elements // (block_i * block_o), power_of_two(geometry.channels))
        yield tile_config(geometry, itemsize, block_c, block_o, block_i)


def tile_config(geometry: Geometry, itemsize: int, block_c: int, block_o: int, block_i: int) -> Config:
    """A tile with warps for it: twice as many where accesses are narrow, since each element then needs a pointer."""
    per_thread = ELEMENTS_PER_THREAD // max(1, itemsize // 4)
    if geometry.alignment * itemsize < 8:
        per_thread //= 2
    num_warps = min(8, max(1, block_c * block_o * block_i // (32 * per_thread)))
    return Config(block_c, block_o, block_i, num_warps=num_warps)


def fitting_block(size: int, most: int, least: int = 1) -> int:
    """The largest power of two up to `most` whose lanes find work nine times in ten; if none, the least wasteful."""
    most = min(most, power_of_two(size))
    blocks = [most >> halvings for halvings in range(3) if most >> halvings >= min(least, most)]
    used = {block: size / (math.ceil(size / block) * block) for block in blocks}
    return next((block for block in blocks if used[block] >= 0.9), max(blocks, key=used.__getitem__))


def cost(geometry: Geometry, config: Config, itemsize: int, mode: Mode) -> float:
    """Modelled bytes that one slot of a GPU moves from the first launch to the last."""
    tile = config.block_c * config.block_o * config.block_i * itemsize
    chunks = config.chunks(geometry)
    merge = 0 if mode == "inference" else 8 * config.block_c * chunks
    program = PROGRAM_BYTES + TENSORS_MOVED[mode] * config.tiles_per_chunk * tile + merge
    return program * max(1.0, chunks * config.channel_blocks(geometry) / FILLING_PROGRAMS)
