"""The configs worth considering for a geometry on a device, and the choice among them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from .configs import SECTOR, Config, Epilogue, Mode, power_of_two
from .cost import MOST_REGISTERS, modelled_time, most_registers, places, registers_needed
from .counters import FRACTION
from .devices import Device
from .geometry import Geometry

MOST_MERGED = 32768
"""Most results of chunks, of all channels of a block together, that one program merges."""

WARPS = (1, 2, 4, 8)

LEAST_WARPS = 2
"""Of a resident program, unless its tile is too small: cycle-level simulation has 2 to 4 at the front."""

MOST_THREADS = 256
"""Of a program: with more, no thread could have as many registers as there are."""

HELD = {"planes": (8, 16, 32), "runs": (8, 16, 32), "rows": (16, 32, 64)}
"""Elements of a tensor that a thread of a resident program holds, channels-first, folded and channels-last.

Cycle-level simulation: few are best where a channel has few chunks anyway, more where so many programs would have to
share a channel.
"""

MOST_HELD = 16384
"""Elements of one tensor that a resident program holds: with more, its warps wait for each other too often."""

STREAMED = (8, 16, 32)
"""The same where a program takes one tile after the other."""

TILES_PER_CHUNK = (1, 2, 4, 8, 16, 32, 64, 256, 1024, 4096, 16384, 65536, 1 << 20)

SECTORS = (1, 2, 4)
"""Widths of channels-last tiles."""

LARGEST_TILE = 65536
"""Elements."""

SMALL_TILE = 1024
"""Elements that even channels of a few values are put together for."""


def choose(
    geometry: Geometry, itemsize: int, mode: Mode, device: Device, share: int, epilogue: Epilogue = "none"
) -> Config:
    """The config of least modelled time; ties go to the first. For `share` see resident."""
    candidates = space(geometry, itemsize, mode, device, share, epilogue)
    return min(candidates, key=lambda config: modelled_time(geometry, config, itemsize, mode, device, epilogue))


def space(
    geometry: Geometry, itemsize: int, mode: Mode, device: Device, share: int, epilogue: Epilogue = "none"
) -> Iterator[Config]:
    """Every config worth considering, never none: resident ones if there are any: nothing else has beaten them."""
    if mode in ("forward", "backward"):
        held = HELD["runs" if geometry.fold(itemsize) else "rows" if geometry.channels_last else "planes"]
        found = False
        for config in with_warps(geometry, itemsize, device, held):
            small = config.elements < LEAST_WARPS * device.warp_size * held[0]
            if config.elements <= MOST_HELD and (config.num_warps >= LEAST_WARPS or small):
                for candidate in resident(config, geometry, itemsize, mode, device, share, epilogue):
                    found = True
                    yield candidate
        if found:
            return
    for config in with_warps(geometry, itemsize, device, STREAMED):
        yield from streamed(config, geometry, itemsize, mode, device, epilogue)


def with_warps(geometry: Geometry, itemsize: int, device: Device, per_thread: tuple[int, ...]) -> Iterator[Config]:
    """Every tile with as many warps as give a thread so many elements, or fewer where a tile is too small for that."""
    for tile in tiles(geometry, itemsize):
        for warps in (n for n in WARPS if n * device.warp_size <= MOST_THREADS):
            elements = tile.elements // (warps * device.warp_size)
            if elements in per_thread or (warps == 1 and elements < STREAMED[0]):
                yield replace(tile, num_warps=warps)


def resident(
    config: Config, geometry: Geometry, itemsize: int, mode: Mode, device: Device, share: int, epilogue: Epilogue
) -> Iterator[Config]:
    """The config as a resident one, unless its chunks must not wait for each other.

    A launch holds at most chunks - 1 places without being able to go on (kernels/exchange.py). They may be one in
    `share` of the places that the GPU has, none where it is 0: see counters.py. More chunks, up to one in every place,
    go into a cooperative launch, which does not start before the GPU can run all of its programs.
    """
    config = replace(config, strategy="resident", packed=itemsize == 2 and device.backend == "cuda")
    needed = registers_needed(config, geometry, itemsize, mode, device, epilogue)
    chunks, per_sm = config.chunks(geometry), places(config, needed, device)
    if needed > MOST_REGISTERS or per_sm == 0:
        return
    config = replace(config, registers=most_registers(config, per_sm, device))
    slots = device.sm_count * per_sm
    if chunks == 1:
        yield config
    elif power_of_two(chunks) * config.block_c <= MOST_MERGED and device.concurrent:
        if share and per_sm >= FRACTION and chunks <= slots // share:
            yield config
        elif chunks <= slots:
            yield replace(config, at_once=min(slots, chunks * config.channel_blocks(geometry)))


def streamed(
    config: Config, geometry: Geometry, itemsize: int, mode: Mode, device: Device, epilogue: Epilogue
) -> Iterator[Config]:
    """One sweep; or two as a dataflow, for which one place is enough, since it is one launch where "split" is two."""
    for tiles_per_chunk in TILES_PER_CHUNK[: 1 if mode == "inference" else None]:
        if tiles_per_chunk >= 2 * config.tiles(geometry):
            return
        cut = replace(config, tiles_per_chunk=tiles_per_chunk)
        chunks = cut.chunks(geometry)
        if mode != "inference" and power_of_two(chunks) * cut.block_c > MOST_MERGED:
            continue
        if mode in ("inference", "sums"):
            yield cut
        else:
            per_sm = places(cut, registers_needed(cut, geometry, itemsize, mode, device, epilogue), device)
            window = min(cut.channel_blocks(geometry), math.ceil(device.sm_count * per_sm / chunks))
            yield replace(cut, strategy="dataflow", window=max(1, window))


def tiles(geometry: Geometry, itemsize: int) -> Iterator[Config]:
    """Tiles worth considering, as configs of one tile a chunk; a row of one is never shorter than a sector."""
    sector = SECTOR // itemsize
    if fold := geometry.fold(itemsize):
        run = power_of_two(fold.run)
        for block_o in powers(math.ceil(geometry.values / fold.lanes), LARGEST_TILE // run):
            yield Config(power_of_two(fold.channels), block_o, run, lanes=fold.lanes)
    elif geometry.channels_last:
        widest = power_of_two(geometry.channels)
        filling = max(SECTORS[-1] * sector, SMALL_TILE // power_of_two(geometry.values))
        for block_c in sorted({min(width, widest) for width in (*(n * sector for n in SECTORS), filling)}):
            yield from rows(geometry, block_c, 1)
    else:
        for block_c in powers(geometry.channels, LARGEST_TILE):
            yield from rows(geometry, block_c, min(4 * sector, power_of_two(geometry.inner)))


def rows(geometry: Geometry, block_c: int, least: int) -> Iterator[Config]:
    """Tiles of so many channels; of several only if they are whole or the fast axis."""
    for block_i in powers(geometry.inner, LARGEST_TILE // block_c):
        if block_i < least:
            continue
        height = geometry.outer_size if block_i >= geometry.inner else 1
        for block_o in powers(height, LARGEST_TILE // block_c // block_i):
            if block_c == 1 or geometry.channels_last or block_o * block_i >= geometry.values:
                yield Config(block_c, block_o, block_i)


def powers(size: int, most: int) -> Iterator[int]:
    """Powers of two up to the first that is not below size, none above `most`."""
    return (1 << bit for bit in range(power_of_two(size).bit_length()) if 1 << bit <= most)
