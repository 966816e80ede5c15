"""What a sample-wise config should take on a GPU, in seconds: cost.py's model for rows, chunks and runs.

A program takes one tile after the other. Nothing hides what its first one waits for and computes. Of all further tiles,
its own or those of programs that follow it, the slower of memory and programs counts in full; of the faster, other
programs hide a part (less than HIDDEN).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ..configs import Work
from ..devices import Device
from .cost import (
    ACCESS_INSTRUCTIONS,
    FASTEST_SM,
    HIDDEN,
    L2_SHARE,
    L2_SPEED,
    LANES,
    LATENCY,
    LAUNCH,
    MERGED,
    PROGRAM,
    SPILLED,
    TILE_LATENCY,
    WARP,
    tile_bytes,
)
from .sample_configs import MERGE_WARPS, MERGED_COLUMNS, MERGED_RUNS, SampleConfig
from .sample_tile import Tile

VECTORS = {"sample_forward": 2, "sample_backward": 1}
"""Weight and bias, as far as they are read."""

MERGE_REGISTERS = 64
"""Of the program that adds up the runs' column sums."""


@dataclass
class Launch:
    """What each program does, tile after tile."""

    programs: int
    per_sm: int
    """Programs that an SM holds at once."""
    num_warps: int
    tiles: int
    moved: float
    """Bytes of a tile, as many as the memory would move in the time."""
    instructions: float
    """Of all threads, for a tile."""
    beside: float = 0.0
    """Bytes of a program beside its tiles."""
    waits: float = 0.0
    """Seconds more that a tile waits."""


def modelled_time(
    work: Work, config: SampleConfig, device: Device, registers: int | None = None, spills: int = 0
) -> float:
    """Seconds from the first program's start to the last one's end; infinite where registers do not suffice.

    Registers and spilled bytes per thread may be given as the compiler reports them, the most of any launch; otherwise
    registers are estimated, and none spills.
    """
    tile = Tile(work, config, device)
    per_sm = tile.places(registers or tile.registers)
    if per_sm == 0:
        return math.inf
    launches = forward if work.mode == "sample_forward" else backward
    times = [seconds(launch, device) for launch in launches(tile, per_sm, SPILLED * spills * tile.threads)]
    return sum(times) + LAUNCH * (len(times) - 1)


def seconds(launch: Launch, device: Device) -> float:
    """From the first program's start to the last one's end."""
    busy = busy_programs(launch.programs, launch.per_sm, device)
    waves = launch.programs / (busy * device.sm_count)
    waves = max(1.0, (waves + math.ceil(waves)) / 2)
    share = device.bandwidth / min(device.sm_count, max(launch.programs, device.sm_count / FASTEST_SM))
    lanes = LANES * min(1.0, launch.num_warps * (1 + busy) / 8) * device.clock
    computing = launch.instructions * (1 + busy) / 2 / lanes + launch.waits
    memory = waves * busy * (launch.tiles * launch.moved + launch.beside) / share
    first = LATENCY + WARP * launch.num_warps + computing
    further = (waves - 1) * first + waves * (launch.tiles - 1) * (TILE_LATENCY + computing)
    hidden = HIDDEN * busy / (busy + 1)
    return PROGRAM * launch.programs + first + max(memory, further) + (1 - hidden) * min(memory, further)


def busy_programs(programs: int, per_sm: int, device: Device) -> int:
    """How many of the programs an SM has at once."""
    return min(per_sm, math.ceil(programs / device.sm_count))


def forward(tile: Tile, per_sm: int, spilled: float) -> Iterator[Launch]:
    """The launches of a forward pass, with so many programs on an SM and so many bytes of a tile that spill."""
    geometry, config, device = tile.work.geometry, tile.config, tile.device
    moved, beside = tile_bytes(tile.work, config), vector_bytes(tile)
    runs, chunks, columns = config.runs(geometry), config.chunks(geometry), config.column_tiles(geometry)
    tiles = min(config.run_tiles, config.row_tiles(geometry))
    if config.strategy == "short":
        instructions = tile.instructions(2, 1.0)
        yield Launch(runs, per_sm, config.num_warps, tiles, 2 * moved + spilled, instructions, beside)
        return
    statistics, normalize = tile.instructions(1, 0.5), tile.instructions(2, 0.5)
    if chunks == 1:
        again = read_again(busy_programs(runs, per_sm, device) * device.sm_count * columns * moved, device)
        average, instructions = (2 + again) / 2 * moved + spilled, (statistics + normalize) / 2
        yield Launch(runs, per_sm, config.num_warps, 2 * tiles * columns, average, instructions, beside)
        return
    again = read_again(geometry.channels * geometry.values * tile.work.itemsize, device)
    tiles *= config.chunk_tiles
    yield Launch(runs * chunks, per_sm, config.num_warps, tiles, moved + spilled, statistics)
    moved, waits = (1 + again) * moved + spilled, MERGED * chunks / config.chunk_tiles
    yield Launch(runs * chunks, per_sm, config.num_warps, tiles, moved, normalize, beside, waits)


def backward(tile: Tile, per_sm: int, spilled: float) -> Iterator[Launch]:
    """The same of a backward pass that all gradients are asked of."""
    geometry, config, device = tile.work.geometry, tile.config, tile.device
    moved, beside = tile_bytes(tile.work, config), vector_bytes(tile)
    runs, chunks, columns = config.runs(geometry), config.chunks(geometry), config.column_tiles(geometry)
    tiles = min(config.run_tiles, config.row_tiles(geometry))
    again, waits = 1.0, 0.0
    if config.strategy == "long":
        again, waits = read_again(2 * geometry.channels * geometry.values * tile.work.itemsize, device), MERGED * chunks
        summed = tiles * min(config.chunk_tiles, columns)
        instructions = tile.instructions(2, 0.5)
        yield Launch(runs * chunks, per_sm, config.num_warps, summed, 2 * moved + spilled, instructions, beside)
    moved, instructions = (1 + 2 * again) * moved + spilled, tile.instructions(3, 1.0)
    number = 4 * tile.double
    beside += 2 * number * min(config.block_c, geometry.channels)
    yield Launch(runs * columns, per_sm, config.num_warps, tiles, moved, instructions, beside, waits)
    sums = 2 * MERGED_COLUMNS * min(MERGED_RUNS, runs)
    yield Launch(
        programs=math.ceil(geometry.channels / MERGED_COLUMNS),
        per_sm=device.places(MERGE_WARPS * device.warp_size, MERGE_REGISTERS, number * sums),
        num_warps=MERGE_WARPS,
        tiles=math.ceil(runs / MERGED_RUNS),
        moved=number * sums / L2_SPEED,
        instructions=ACCESS_INSTRUCTIONS * sums,
    )


def read_again(kept: float, device: Device) -> float:
    """How long reading a byte again takes, compared with the first time, where so many are read in between."""
    return 1 / L2_SPEED if kept <= L2_SHARE * device.l2_bytes else 1.0


def vector_bytes(tile: Tile) -> float:
    """What a program reads of vectors before they are in its SM's L1: the L2 has them."""
    columns = min(tile.config.block_c, tile.work.geometry.channels)
    return VECTORS[tile.work.mode] * 4 * tile.double * columns / L2_SPEED
