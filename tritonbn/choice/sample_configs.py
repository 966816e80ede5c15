"""One way to cut sample-wise work: tiles, chunks of columns, runs of rows. Data and arithmetic only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from ..geometry import Geometry

SampleStrategy = Literal["short", "long"]
"""A tile holds whole rows, which are read once; or rows are longer, and read twice."""

MERGED_COLUMNS = 32
"""Columns of a program that adds up the runs' column sums: a 128-byte line."""

MERGED_RUNS = 32
"""Runs that it adds at once."""

MERGE_WARPS = 4
"""Its warps."""


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
    strategy: SampleStrategy = "short"

    lanes: ClassVar[int] = 0
    """No rows are folded."""
    edges: ClassVar[int] = 0
    """Nor have they edges."""

    @property
    def elements(self) -> int:
        """Elements of a tile."""
        return self.block_c * self.rows

    @property
    def rows(self) -> int:
        """Rows of a tile."""
        return self.block_o * self.block_i

    def inner(self, geometry: Geometry) -> int:
        """The inner size of what is cut into tiles."""
        return geometry.inner

    def row_tiles(self, geometry: Geometry) -> int:
        """Tiles beside each other that hold some columns of every row."""
        return math.ceil(geometry.outer_size / self.block_o) * math.ceil(geometry.inner / self.block_i)

    def column_tiles(self, geometry: Geometry) -> int:
        """Tiles of one row."""
        return math.ceil(geometry.channels / self.block_c)

    def chunks(self, geometry: Geometry) -> int:
        """Chunks of one row."""
        return math.ceil(self.column_tiles(geometry) / self.chunk_tiles)

    def runs(self, geometry: Geometry) -> int:
        """Runs of row tiles."""
        return math.ceil(self.row_tiles(geometry) / self.run_tiles)
