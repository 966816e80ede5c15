"""What a config should take on a GPU: a model of places for programs, bytes and waits, in seconds.

The constants follow cycle-level simulations and data sheets; what they are good for is to compare configs.
"""

from __future__ import annotations

import math

from .configs import SECTOR, Config, Mode
from .devices import Device
from .geometry import FULL_ACCESS, Geometry

READ = {"forward": 1, "inference": 1, "backward": 2, "sums": 2}
"""Tensors read once."""

WRITTEN = {"forward": 1, "inference": 1, "backward": 1, "sums": 0}

SPARE_REGISTERS = 40
"""Registers a thread for everything but the tile; folded ones take FOLDING more, MANY_CHUNKS to be merged MERGING."""

FOLDING = 16
MERGING = 8
MANY_CHUNKS = 16

PACKED_ELEMENT = {"forward": (1.15, 1 / 320), "backward": (0.68, 0.0)}
"""Registers that an element takes which is held in 16 bits, with what is computed from it; and more for each other."""

HELD_ELEMENT = {2: 2.2, 4: 2.2, 8: 5.2}
"""The same where it is held as it is computed with, by its bytes in memory."""

STREAMED_ELEMENT = {"forward": 1.25, "inference": 1.0, "backward": 3.6, "sums": 2.7}
"""Registers for each element of a tile that follows another, of all tensors together."""

MOST_REGISTERS = 255

RESERVED_SHARED = 1024
"""Bytes of shared memory that CUDA keeps of every program."""

LATENCY = 0.7e-6
"""Seconds from a program's start until it moves bytes at full speed, and at its end."""

TILE_LATENCY = 0.5e-6
"""The same for each further tile of a chunk."""

WARP = 0.04e-6
"""What each of its warps adds, since a program's warps wait for each other."""

EXCHANGE = 0.4e-6
"""What waiting for the other chunks costs a program, if they start together."""

PROGRAM = 2e-9
"""What starting a program costs the whole GPU."""

MERGED = 5e-9
"""What a chunk of up to 64 channels costs those who merge its numbers."""

LAUNCH = 2.5e-6
"""What a second launch costs."""

L2_SPEED = 3
"""How much faster the L2 is than memory."""

L2_SHARE = 0.5
"""The part of the L2 that what was read is still found in."""

FASTEST_SM = 3
"""How many SMs' share of the memory one SM alone can use."""

INSTRUCTIONS = {"forward": 14, "inference": 6, "backward": 20, "sums": 12}
"""For each element, in all of its sweeps."""

ACCESS_INSTRUCTIONS = 6
"""For each access to one tensor."""

LANES = 128
"""Instructions that an SM begins at each tick of its clock, in four places, one warp at a time in each."""


def accesses(geometry: Geometry, itemsize: int, config: Config) -> float:
    """Elements that one access moves."""
    fast = 3 if geometry.channels_last else 4
    if any(strides[fast] != 1 for strides in geometry.strides):
        return 1
    fold = geometry.fold(itemsize) if config.lanes else None
    alignment = fold.alignment if fold else geometry.alignment
    return max(1, min(FULL_ACCESS // itemsize, alignment))


def registers_needed(config: Config, geometry: Geometry, itemsize: int, mode: Mode, device: Device) -> int:
    """Registers a thread that leave the compiler room for all that the tile needs."""
    per_thread = math.ceil(config.elements / (config.num_warps * device.warp_size))
    held = per_thread * READ[mode]
    if config.strategy != "resident":
        held = per_thread * STREAMED_ELEMENT[mode] * max(1, itemsize // 4)
    elif config.packed:
        first, further = PACKED_ELEMENT[mode]
        held *= first + further * held
    else:
        held *= HELD_ELEMENT[itemsize]
    narrow = FULL_ACCESS / itemsize / accesses(geometry, itemsize, config) - 1
    more = per_thread * narrow / 4 + (FOLDING if config.lanes else 0)
    if config.strategy == "resident" and config.chunks(geometry) > MANY_CHUNKS:
        more += MERGING
    return 8 * math.ceil((SPARE_REGISTERS + held + more) / 8)


def places(config: Config, registers: int, device: Device) -> int:
    """How many programs an SM holds at once."""
    threads = config.num_warps * device.warp_size
    return min(
        device.registers // (8 * math.ceil(registers / 8) * threads),
        device.threads // threads,
        device.programs,
        device.shared_bytes // shared_needed(config),
    )


def shared_needed(config: Config) -> int:
    """Bytes of shared memory that suffice for a program, with what CUDA takes for itself."""
    return RESERVED_SHARED + 8 * max(config.block_i if config.lanes else config.block_c * config.num_warps, 64)


def modelled_time(geometry: Geometry, config: Config, itemsize: int, mode: Mode, device: Device) -> float:
    """Seconds from the first program's start to the last one's end; infinite where registers do not suffice."""
    registers = config.registers or registers_needed(config, geometry, itemsize, mode, device)
    per_sm = places(config, registers, device)
    if registers > MOST_REGISTERS or per_sm == 0:
        return math.inf
    chunks, blocks = config.chunks(geometry), config.channel_blocks(geometry)
    programs, slots = blocks * chunks, per_sm * device.sm_count
    tiles = min(config.tiles_per_chunk, config.tiles(geometry))
    chunk = tiles * tile_bytes(geometry, config, itemsize)
    busy = min(per_sm, math.ceil(programs / device.sm_count))
    waves = programs / (busy * device.sm_count)
    waves = max(1.0, (waves + math.ceil(waves)) / 2)
    share = device.bandwidth / min(device.sm_count, max(programs, device.sm_count / FASTEST_SM))
    lanes = LANES * min(1.0, config.num_warps * (1 + busy) / 8) * device.clock

    def sweep(moved: float, work: float, waits: float) -> float:
        """All programs once, each moving as many bytes as `moved` chunks, in `work` instructions an element."""
        work += ACCESS_INSTRUCTIONS * moved / accesses(geometry, itemsize, config)
        computing = config.elements * tiles * work * (1 + busy) / 2 / lanes
        waits += LATENCY + WARP * config.num_warps + TILE_LATENCY * (tiles - 1)
        return waves * (busy * moved * chunk / share + computing + waits)

    reads, writes, work = READ[mode], WRITTEN[mode], INSTRUCTIONS[mode]
    time = PROGRAM * programs
    if mode != "inference" and chunks > 1:
        time += MERGED * chunks * max(1.0, config.block_c / 64)
    if config.strategy == "resident" or mode in ("inference", "sums"):
        waits = EXCHANGE if config.strategy == "resident" and chunks > 1 else 0
        return time + sweep(reads + writes, work, waits)
    kept = reads * geometry.channels * geometry.values * itemsize
    if config.strategy == "dataflow":
        kept = reads * chunk * (slots + 2 * config.window * chunks)
    again = reads / (L2_SPEED if kept <= L2_SHARE * device.l2_bytes else 1)
    time += sweep(reads, work / 2, 0) + sweep(again + writes, work / 2, 0)
    return time + (EXCHANGE if config.strategy == "dataflow" else LAUNCH)


def tile_bytes(geometry: Geometry, config: Config, itemsize: int) -> float:
    """Bytes of a full tile of one tensor, with the parts of sectors that it moves in vain."""
    if config.lanes:
        run = config.lanes * min(config.block_c, geometry.channels)
        return min(config.block_o, math.ceil(geometry.values / config.lanes)) * run * itemsize
    sizes = (
        min(config.block_c, geometry.channels),
        min(config.block_o, geometry.outer_size),
        min(config.block_i, geometry.inner),
    )
    row = sizes[0] if geometry.channels_last else sizes[2]
    whole = geometry.channels if geometry.channels_last else geometry.inner
    row_bytes = row * itemsize if row == whole else SECTOR * math.ceil(row * itemsize / SECTOR)
    return math.prod(sizes) // row * row_bytes
