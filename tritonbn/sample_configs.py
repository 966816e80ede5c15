"""How sample-wise work is cut: tiles, chunks of columns, runs of rows. Arithmetic only, the same on every machine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from .configs import power_of_two
from .geometry import Geometry

Direction = Literal["forward", "backward"]

TILE_ELEMENTS = 2048
"""Elements of a tile, half as many in 64 bits."""

ELEMENTS_PER_THREAD = 16
"""Elements of each tensor that a thread of a 32-wide warp holds at once: two 16-byte accesses in 16 bits."""

FILLING_PROGRAMS = 1024
"""Programs of four warps that keep a large GPU busy: about eight on each SM, 32 KB of input in flight there."""

PROGRAM_BYTES = 8192
"""What starting a program costs, as memory traffic."""

LONGEST_TILE = {"forward": 16384, "backward": 8192}
"""Elements of a row, or of several, that one program keeps in registers; half as many in 64 bits."""

TENSORS_MOVED = {"forward": 2, "backward": 3}

MOST_WARPS = 16

MERGED_CHUNKS = 64
"""Most chunks of a row that a program merges in one piece."""

MERGED_COLUMNS = 32
"""Columns of a program that adds up the runs' column sums: a 128-byte line."""

MERGED_RUNS = 32
"""Runs that it adds at once."""


@dataclass(frozen=True)
class SampleConfig:
    """One way to run the sample-wise kernels; a geometry's channels are here the columns of each row."""

    block_c: int
    block_o: int
    block_i: int
    """The tile: columns x outer x inner, powers of two."""
    chunk_tiles: int = 1
    """Column tiles of a long row that one program sums."""
    run_tiles: int = 1
    """Row tiles that one program takes, one after the other."""
    num_warps: int = 4

    def holds_rows(self, geometry: Geometry) -> bool:
        """Whether a tile is as long as a row."""
        return self.block_c >= geometry.channels

    def column_tiles(self, geometry: Geometry) -> int:
        """Tiles of one row."""
        return math.ceil(geometry.channels / self.block_c)

    def chunks(self, geometry: Geometry) -> int:
        """Chunks of one row."""
        return math.ceil(self.column_tiles(geometry) / self.chunk_tiles)

    def runs(self, geometry: Geometry) -> int:
        """Runs of row tiles."""
        tiles = math.ceil(geometry.outer_size / self.block_o) * math.ceil(geometry.inner / self.block_i)
        return math.ceil(tiles / self.run_tiles)


def sample_heuristic(geometry: Geometry, itemsize: int, direction: Direction) -> SampleConfig:
    """Rows in registers where a tile can hold one; then runs, and chunks of long rows, that fill a large GPU."""
    scale = max(1, itemsize // 4)
    longest, filling = LONGEST_TILE[direction] // scale, TILE_ELEMENTS // scale
    sector = 32 // itemsize
    neighbours = 1 if geometry.channels_last else min(2 * sector, power_of_two(geometry.inner))
    block_c = power_of_two(geometry.channels)
    if block_c * neighbours > longest:
        block_c = filling // neighbours
    room = max(neighbours, filling // block_c)
    block_i = fitting_block(geometry.inner, room, least=neighbours)
    block_o = fitting_block(geometry.outer_size, max(1, room // block_i))
    elements = block_c * block_i * block_o
    per_thread = ELEMENTS_PER_THREAD // scale
    if geometry.alignment * itemsize < 8:
        per_thread //= 2
    num_warps = min(MOST_WARPS, max(1, elements // (32 * per_thread)))

    tile = SampleConfig(block_c, block_o, block_i, num_warps=num_warps)
    candidates = [
        with_chunks(geometry, SampleConfig(block_c, block_o, block_i, 1, 1 << bit, num_warps))
        for bit in range(power_of_two(tile.runs(geometry)).bit_length())
    ]
    return min(candidates, key=lambda config: cost(geometry, config, itemsize, direction))


def with_chunks(geometry: Geometry, config: SampleConfig) -> SampleConfig:
    """The config with its long rows cut into chunks, if its runs alone are too few to fill a GPU."""
    chunks = min(MERGED_CHUNKS, max(1, FILLING_PROGRAMS // config.runs(geometry)))
    chunk_tiles = math.ceil(config.column_tiles(geometry) / chunks)
    return SampleConfig(config.block_c, config.block_o, config.block_i, chunk_tiles, config.run_tiles, config.num_warps)


def fitting_block(size: int, most: int, least: int = 1) -> int:
    """The largest power of two up to `most` whose lanes find work nine times in ten; if none, the least wasteful."""
    most = min(most, power_of_two(size))
    blocks = [most >> halvings for halvings in range(3) if most >> halvings >= min(least, most)]
    used = {block: size / (math.ceil(size / block) * block) for block in blocks}
    return next((block for block in blocks if used[block] >= 0.9), max(blocks, key=used.__getitem__))


def cost(geometry: Geometry, config: SampleConfig, itemsize: int, direction: Direction) -> float:
    """Modelled bytes that one slot of a GPU moves, and those of the program that adds up the runs' column sums."""
    elements = config.block_c * config.block_o * config.block_i
    once = config.holds_rows(geometry)
    tiles = config.run_tiles * (1 if once else config.chunk_tiles)
    tensors = TENSORS_MOVED[direction] * (1 if once else 2) - (0 if once else 1)
    vectors = 8 * config.block_c * (1 if direction == "forward" else 2)
    program = PROGRAM_BYTES + tiles * tensors * elements * itemsize + vectors
    runs = config.runs(geometry)
    waves = runs * config.chunks(geometry) * (elements * max(1, itemsize // 4) / TILE_ELEMENTS) / FILLING_PROGRAMS
    merge = 8 * MERGED_COLUMNS * runs if direction == "backward" else 0
    return program * max(1.0, waves) + merge
