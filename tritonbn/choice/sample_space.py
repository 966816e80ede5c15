"""The sample-wise configs worth considering for some work on a device: data for each mode and layout, and what fits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from ..configs import Mode, Work
from ..devices import Device
from ..geometry import SECTOR, power_of_two
from ..measured.timings import rounded_up
from .sample_configs import SampleConfig, SampleStrategy
from .sample_cost import modelled_time as modelled_time
from .sample_tile import Tile
from .space import SAFE_ELEMENTS, SAFE_WARPS, powers

Layout = Literal["rows", "columns"]
"""In memory an element's neighbours are those of its own row, or those of other rows."""


@dataclass(frozen=True)
class Space:
    """What is worth trying; a config is a choice from each of these and from the tiles that suit the geometry."""

    strategy: SampleStrategy
    elements: tuple[int, ...]
    """Of a tile, that a thread has; fewer where one warp is too many for the tile."""
    num_warps: tuple[int, ...]
    sectors: tuple[int, ...] = (1,)
    """That a tile has of neighbouring rows, where these are adjacent in memory; a short one has the first or more."""
    chunks: tuple[int, ...] = (1,)
    """Most of a row."""
    run_tiles: tuple[int, ...] = ()
    """Of a run, whatever the GPU."""
    runs: tuple[float, ...] = ()
    """Programs per SM that runs are cut for."""


WARPS = (1, 2, 4, 8, 16)
CHUNKS = (1, 4, 16, 64)
RUNS = (0.5, 1, 2, 4, 8, 16)

HELD = Space("short", (4, 8, 16, 32), WARPS, run_tiles=(1, 2, 4, 8), runs=RUNS)
SUMMED = Space("short", (4, 8, 16, 32), WARPS, runs=(0.25, 0.5, 1, 2, 3, 4, 6, 8, 12, 16))
STREAMED = Space("long", (8, 16), WARPS, chunks=CHUNKS, run_tiles=(1,), runs=RUNS)

SPACES: dict[tuple[Mode, Layout], tuple[Space, Space]] = {
    ("sample_forward", "rows"): (HELD, STREAMED),
    ("sample_forward", "columns"): (HELD, replace(STREAMED, sectors=(1, 2))),
    ("sample_backward", "rows"): (SUMMED, replace(STREAMED, run_tiles=())),
    ("sample_backward", "columns"): (SUMMED, replace(STREAMED, run_tiles=(), sectors=(1, 2))),
}

LONG = 8192
"""Elements of a tile of whole rows, from which on they may be cut as long ones too."""

CROWDED = 16
"""Programs per SM, above which no row needs to be cut for there to be enough of them."""


def space(work: Work, device: Device, share: int) -> Iterator[SampleConfig]:
    """Every config worth considering that may run; no program waits for another, so `share` does not matter."""
    for found in spaces(work):
        for tile in tiles(work, device, found):
            if tile.strategy == "long" and power_of_two(work.geometry.channels) * tile.rows < LONG:
                continue
            for warps in found.num_warps:
                threads = warps * device.warp_size
                small = warps == 1 and tile.elements < threads * found.elements[0]
                if small or tile.elements // threads in found.elements:
                    yield from cuts(work, replace(tile, num_warps=warps), device, found)


def spaces(work: Work) -> tuple[Space, ...]:
    """For short rows and for long ones."""
    return SPACES[work.mode, "rows" if work.geometry.channels_last else "columns"]


def tiles(work: Work, device: Device, found: Space) -> Iterator[SampleConfig]:
    """Tiles worth considering, as configs of one tile a chunk and a run."""
    geometry, whole = work.geometry, power_of_two(work.geometry.channels)
    sector, widest = SECTOR // work.itemsize, power_of_two(geometry.inner)
    widths = [1] if geometry.channels_last else sorted({min(n * sector, widest) for n in found.sectors})
    largest = found.num_warps[-1] * device.warp_size * found.elements[-1]
    if found.strategy == "short":
        for block_i in powers(geometry.inner, largest // whole):
            height = geometry.outer_size if block_i >= geometry.inner else 1
            for block_o in powers(height, largest // whole // block_i) if block_i >= widths[0] else ():
                yield SampleConfig(whole, block_o, block_i)
    elif whole > 1:
        for block_i in widths:
            for block_c in powers(whole // 2, largest // block_i):
                yield SampleConfig(block_c, 1, block_i, strategy="long")


def cuts(work: Work, config: SampleConfig, device: Device, found: Space) -> Iterator[SampleConfig]:
    """The config with runs and chunks of every length that fit."""
    longest = power_of_two(config.column_tiles(work.geometry))
    for chunk_tiles in sorted({max(1, longest // chunks) for chunks in found.chunks}):
        cut = replace(config, chunk_tiles=chunk_tiles)
        if fits(work, cut, device):
            for run_tiles in run_lengths(work, cut, device, found):
                yield replace(cut, run_tiles=run_tiles)


def fits(work: Work, config: SampleConfig, device: Device) -> bool:
    """Whether a program has room on an SM."""
    tile = Tile(work, config, device)
    return tile.places(tile.registers) > 0


def run_lengths(work: Work, config: SampleConfig, device: Device, found: Space) -> list[int]:
    """Row tiles of a run, rounded so that shapes that are alike have the same."""
    row_tiles, chunks = config.row_tiles(work.geometry), config.chunks(work.geometry)
    beside = config.column_tiles(work.geometry) if work.mode == "sample_backward" else chunks
    lengths = {rounded_up(math.ceil(row_tiles * beside / (n * device.sm_count))) for n in found.runs}
    lengths |= {length for length in found.run_tiles if length < 2 * row_tiles}
    most = CROWDED * device.sm_count
    return sorted(n for n in lengths if chunks == 1 or chunks * math.ceil(row_tiles / n) <= most)


def conservative(work: Work, device: Device) -> SampleConfig:
    """What runs where nothing else does: no thread needs more than a few registers, and no row is cut."""
    geometry, thread = work.geometry, device.warp_size * SAFE_ELEMENTS
    found = (tile for found in spaces(work) for tile in tiles(work, device, found))
    config = min(found, key=lambda tile: abs(tile.elements - SAFE_WARPS * thread))
    return replace(
        config,
        chunk_tiles=config.column_tiles(geometry),
        run_tiles=math.ceil(config.row_tiles(geometry) / device.sm_count),
        num_warps=min(WARPS[-1], power_of_two(math.ceil(config.elements / thread))),
    )
